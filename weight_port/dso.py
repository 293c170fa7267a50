"""DSO's own checkpoints: base and adapter in one state dict, as a torch PEFT model has them.

Every tensor of the base under `base_model.model.`, an adapted linear's renamed to `.base_layer.`,
and its branch beside it as `.lora_A.default.weight` and `.lora_B.default.weight`, in fp32. A torch
user loads the file with `get_peft_model(...).load_state_dict(..., strict=True)`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import jax
import numpy as np

from dso_jax.models import FlowConfig, LoRAConfig, init_flow
from dso_jax.models.lora import adapter_leaves, strip
from weight_port import convert, tables
from weight_port.convert import Slot
from weight_port.errors import Problem, report
from weight_port.tables import PEFT_PREFIX

BASE_LAYER = ".base_layer."
BRANCH = tuple(f".{leaf}.default.weight" for leaf in ("lora_A", "lora_B"))
SCALE = 2.0  # alpha / rank in DSO's training (128 / 64), which its files do not state


@functools.cache
def slots(config: FlowConfig, lora: LoRAConfig) -> tuple[Slot, ...]:
    """Every leaf of base and adapter with its torch names; from shapes alone."""
    tree = jax.eval_shape(lambda key: init_flow(config, key, lora), jax.random.key(0))
    adapter = adapter_leaves(tree)
    adapted = {path.rpartition("/")[0] for path in convert.flatten(adapter)}

    def in_base(slot: Slot) -> Slot:
        if slot.path.rpartition("/")[0] not in adapted:
            return replace(slot, names=tuple(PEFT_PREFIX + name for name in slot.names))
        split = [name.rpartition(".") for name in slot.names]
        return replace(
            slot, names=tuple(f"{PEFT_PREFIX}{m}{BASE_LAYER}{leaf}" for m, _, leaf in split)
        )

    def in_branch(slot: Slot) -> Slot:
        stems = (name.removesuffix(".weight") for name in slot.names)
        return replace(slot, names=tuple(f"{stem}.default.weight" for stem in stems))

    base = convert.plan(tables.FLOW, strip(tree))
    branches = convert.plan(tables.adapter(tables.FLOW), adapter)
    return (*map(in_base, base), *map(in_branch, branches))


def is_dso(names: Mapping[str, object]) -> bool:
    """Whether tensor names are those of this layout, if perhaps not all of them."""
    return any(BASE_LAYER in name or name.endswith(BRANCH) for name in names)


def base_shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """TRELLIS's names of the base's tensors -> shapes."""
    return {
        name.removeprefix(PEFT_PREFIX).replace(BASE_LAYER, "."): np.shape(value)
        for name, value in tensors.items()
        if not name.endswith(BRANCH)
    }


def lora_config(tensors: Mapping[str, np.ndarray], source: str, alpha: float | None) -> LoRAConfig:
    """Rank and targets as the branches have them.

    Args:
      alpha: of the adapter; None takes DSO's, twice the rank.

    Raises:
      WeightError: no branch at all, or one whose A is no matrix.
    """
    down = {name: value for name, value in tensors.items() if name.endswith(BRANCH[0])}
    if not down:
        problem = Problem("missing", f"*{BRANCH[0]}", "no linear has a branch")
        raise report(source, "a DSO checkpoint", [problem])
    for name, value in down.items():
        if value.ndim != 2 or 0 in value.shape:
            problem = Problem("shape", name, f"is {value.shape}, expected (rank, in)")
            raise report(source, "a DSO checkpoint", [problem])
    rank = next(iter(down.values())).shape[0]  # another rank elsewhere is then a shape that differs
    targets = {name.removesuffix(BRANCH[0]).rpartition(".")[2] for name in down}
    return LoRAConfig(rank, SCALE * rank if alpha is None else alpha, tuple(sorted(targets)))
