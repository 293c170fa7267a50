"""Conversion between a torch state dict and one of our parameter trees, by a rule table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from flax import traverse_util

from weight_port.errors import Problem, report
from weight_port.rules import Rule

FLOATS = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))
MAX_THREADS = 16  # memory, not arithmetic, is the limit


@dataclass(frozen=True)
class Slot:
    """One leaf of our tree and the torch tensors that fill it.

    Attributes:
      path: keys joined by "/".
      shape: ours, with the block axis first if it is stacked.
      rule: the one rule that describes it.
      names: its torch tensors, by block and then by part; one if it is neither stacked nor joined.
    """

    path: str
    shape: tuple[int, ...]
    rule: Rule
    names: tuple[str, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Of each of its torch tensors."""
        shape = self.shape[1:] if self.rule.stacked else self.shape
        if self.rule.axes is not None:
            shape = tuple(shape[axis] for axis in self._to_torch)
        parts = len(self.rule.parts)
        return shape if parts == 1 else (shape[0] // parts, *shape[1:])

    def views(self, leaf: np.ndarray) -> list[np.ndarray]:
        """What each torch tensor fills of `leaf`, in the order of `names` and in torch's layout."""
        blocks = list(leaf) if self.rule.stacked else [leaf]
        if self.rule.axes is not None:
            blocks = [block.transpose(self._to_torch) for block in blocks]
        parts = len(self.rule.parts)
        return blocks if parts == 1 else [v for block in blocks for v in np.split(block, parts)]

    @property
    def _to_torch(self) -> tuple[int, ...]:
        axes = self.rule.axes or ()
        return tuple(axes.index(axis) for axis in range(len(axes)))


@dataclass(frozen=True)
class Cast:
    """Types to convert to; None keeps what the source has.

    Attributes:
      dtype: for every tensor.
      half: instead of `dtype`, for the tensors that the published checkpoints keep in 16 bits.
    """

    dtype: Any = None
    half: Any = None

    def of(self, rule: Rule) -> np.dtype | None:
        wanted = self.half if rule.half and self.half is not None else self.dtype
        return None if wanted is None else np.dtype(wanted)


KEEP = Cast()


def flatten(tree: Mapping) -> dict[str, Any]:
    """Nested dicts -> leaves by path, keys joined by "/"."""
    return traverse_util.flatten_dict(dict(tree), sep="/")  # type: ignore[return-value]


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def plan(rules: Sequence[Rule], tree: Mapping) -> tuple[Slot, ...]:
    """Pairs every leaf of `tree` (arrays or `jax.ShapeDtypeStruct`s) with its torch names.

    Raises:
      WeightError: a leaf that no rule or more than one describes, or a torch name used twice.
    """
    slots, problems = [], []
    for path, leaf in sorted(flatten(tree).items()):
        found = [(rule, names) for rule in rules if (names := rule.to_torch(path)) is not None]
        if len(found) != 1:
            detail = "has no rule" if not found else f"has {len(found)} rules"
            problems.append(Problem("unexpected", path, detail))
            continue
        rule, names_of = found[0]
        count = leaf.shape[0] if rule.stacked else 1
        names = tuple(name for block in range(count) for name in names_of(block))
        slots.append(Slot(path, tuple(leaf.shape), rule, names))
    uses = Counter(name for slot in slots for name in slot.names)
    problems += [Problem("unexpected", n, f"fills {c} leaves") for n, c in uses.items() if c > 1]
    if problems:
        raise report("the parameter tree", "the rule table", problems)
    return tuple(slots)


def export(slots: Sequence[Slot], tree: Mapping, *, cast: Cast = KEEP) -> dict[str, np.ndarray]:
    """Our tree -> torch state dict of contiguous numpy arrays, in the order of the slots.

    Raises:
      WeightError: a leaf that is missing, left over, misshapen or overflows in the cast.
    """
    flat = flatten(tree)
    wanted = {slot.path: slot.shape for slot in slots}
    problems = _compare(wanted, {path: np.shape(leaf) for path, leaf in flat.items()})
    if problems:
        raise report("the parameter tree", "the model", problems)
    tensors: dict[str, np.ndarray] = {}
    for slot in slots:
        leaf = np.asarray(flat[slot.path])
        for value, name in zip(slot.views(leaf), slot.names, strict=True):
            tensors[name] = np.empty(slot.torch_shape, cast.of(slot.rule) or leaf.dtype)
            problems += _copy(value, tensors[name], name)
    if problems:
        raise report("the parameter tree", "the asked type", problems)
    return tensors


def load(
    slots: Sequence[Slot],
    tensors: Mapping[str, np.ndarray],
    *,
    source: str,
    target: str,
    cast: Cast = KEEP,
    place: Callable[[np.ndarray], Any] = np.asarray,
) -> dict:
    """Torch state dict -> our tree, one leaf at a time.

    Args:
      tensors: name -> numpy array; not changed, and may be mapped from a file.
      source: what the error calls the tensors, usually their path.
      target: what the error calls the model.
      place: puts a finished leaf where it belongs, for example on a device.

    Raises:
      WeightError: names every tensor that is missing, unexpected, misshapen, of another type than
        fp32, fp16 or bf16, of another type than the rest of its stack, or overflows in the cast.
    """
    wanted = {name: slot.torch_shape for slot in slots for name in slot.names}
    problems = _compare(wanted, {name: tuple(value.shape) for name, value in tensors.items()})
    for slot in slots:
        problems += _check_types(slot, tensors, cast)
    if problems:
        raise report(source, target, problems, hint=hint(problems, wanted))
    flat: dict[str, Any] = {}
    # Blocks are copied side by side: numpy releases the interpreter while it casts and transposes.
    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        for slot in slots:
            # No name here for the leaf: the last one must be free before the next is made.
            flat[slot.path] = place(_assemble(slot, tensors, cast, pool, problems))
    if problems:
        raise report(source, target, problems)
    return unflatten(flat)


def _assemble(
    slot: Slot,
    tensors: Mapping[str, np.ndarray],
    cast: Cast,
    pool: Executor,
    problems: list[Problem],
) -> np.ndarray:
    leaf = np.empty(slot.shape, cast.of(slot.rule) or tensors[slot.names[0]].dtype)
    values = (np.asarray(tensors[name]) for name in slot.names)
    for found in pool.map(_copy, values, slot.views(leaf), slot.names):
        problems += found
    return leaf


def _compare(wanted: Mapping[str, tuple], given: Mapping[str, tuple]) -> list[Problem]:
    problems = [Problem("missing", name, str(wanted[name])) for name in wanted if name not in given]
    problems += [
        Problem("unexpected", name, str(given[name])) for name in given if name not in wanted
    ]
    return problems + [
        Problem("shape", name, f"is {given[name]}, expected {shape}")
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]


def _check_types(slot: Slot, tensors: Mapping[str, np.ndarray], cast: Cast) -> list[Problem]:
    present = [name for name in slot.names if name in tensors]
    types = {name: np.dtype(tensors[name].dtype) for name in present}
    problems = [
        Problem("dtype", name, f"is {dtype}, expected float32, float16 or bfloat16")
        for name, dtype in types.items()
        if dtype not in FLOATS
    ]
    if not problems and len(set(types.values())) > 1 and cast.of(slot.rule) is None:
        first, *rest = present
        problems = [
            Problem("dtype", name, f"is {types[name]}, but {first} is {types[first]}")
            for name in rest
            if types[name] != types[first]
        ]
    return problems


def _copy(value: np.ndarray, into: np.ndarray, name: str) -> list[Problem]:
    """Writes `value` in the type of `into`; numbers that stop being finite are a problem."""
    with np.errstate(over="ignore"):  # reported below, with the tensor's name
        into[...] = value
    if _largest(into) >= _largest(value):
        return []
    lost = int(np.sum(~np.isfinite(into) & np.isfinite(value)))
    return [Problem("value", name, f"{lost} numbers overflow in {into.dtype}")] if lost else []


def _largest(array: np.ndarray) -> float:
    return float(ml_dtypes.finfo(array.dtype).max)


def hint(problems: Iterable[Problem], wanted: Iterable[str] = ()) -> str:
    """The usual cause, where the names of the unexpected tensors give it away; else empty."""
    names = [problem.name for problem in problems if problem.kind == "unexpected"]
    if any(".lora_A.default." in name or ".base_layer." in name for name in names):
        return "The names are those of a torch PEFT model in memory, as DSO's full dump has them."
    wants_adapter = any(".lora_A." in name for name in wanted)
    if any(".lora_A." in name for name in names) and not wants_adapter:
        return "The file holds a LoRA adapter."
    if names and all(name.startswith("module.") for name in names):
        return "The names start with 'module.': saved from a DistributedDataParallel wrapper."
    return ""
