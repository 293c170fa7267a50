"""Configuration files and command lines, read strictly.

A file that is misread trains the wrong thing for hours, so nothing is guessed: a key that the
dataclasses do not have, a key given twice or a value of another type is an error that names file
and key. YAML itself reads `5e-6` as text and `no` as false; here the first is a float.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml

from dso_jax.config import Config
from dso_jax.errors import UsageError

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML with floats as people write them, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(path: str | Path) -> Config:
    """Read a configuration file over the defaults.

    Raises:
        UsageError: the file is missing, no YAML, or has an unknown key or a value of a wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such configuration file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    return build(Config, {} if values is None else values, str(path))


def save(config: Config, path: Path) -> None:
    """Write every field of `config`, as `load` reads it."""
    text = yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)
    path.write_text(text, encoding="utf-8")


def parse(argv: Sequence[str]) -> Config:
    """The configuration of a command line: defaults, then `--config FILE`, then overrides.

    Raises:
        UsageError: the file cannot be used, or a value is out of range.
        SystemExit: code 0 after `--help`, 2 for an argument that does not exist (tyro explains).
    """
    path, rest = _take_config(list(argv))
    default = Config() if path is None else load(path)
    try:
        config = tyro.cli(
            Config,
            args=rest,
            default=default,
            prog="dso train",
            use_underscores=True,
            description=HELP,
        )
    except ValueError as error:  # a dataclass refused the overrides
        raise UsageError(str(error)) from None
    check(config)
    return config


HELP = """Fine-tune a generator on labelled samples of its own with SFT, DPO or DRO.

--config FILE   a YAML file that lists what differs from the defaults; arguments override it:
                python train.py --config configs/toybox-dro.yaml --optim.learning_rate 1e-4

--plan          compile the step without weights and data, print its parameters, memory, FLOPs and
                largest batch, and leave; --plan --device a100-80g adds an estimate for that card

Several hosts: start one process a GPU with srun, mpirun or an Indexed Job of Kubernetes; JAX finds
the others from what these say, or from --system.coordinator, --system.processes, --system.process.

An interrupted run goes on when the same command is given again. Exit codes: 0 finished; 130 stopped
by SIGINT or SIGTERM after saving a checkpoint; 3 stopped by a rule of --guard, after saving, or by
losses that are not finite; 2 unusable arguments, configuration or data."""


def check(config: Config) -> None:
    """Refuse values that cannot train, before any work.

    Raises:
        UsageError: naming the key, its value and what was expected.
    """
    optim, train = config.optim, config.train
    limits = [
        ("optim.learning_rate", optim.learning_rate, 0, False),
        ("optim.warmup_steps", optim.warmup_steps, 0, True),
        ("optim.weight_decay", optim.weight_decay, 0, True),
        ("optim.eps", optim.eps, 0, False),
        ("optim.clip_norm", optim.clip_norm, 0, True),
        ("train.steps", train.steps, 1, True),
        ("train.batch_size", train.batch_size, 1, True),
        ("train.accumulation", train.accumulation, 1, True),
        ("train.log_every", train.log_every, 1, True),
        ("train.eval_every", train.eval_every, 0, True),
        ("train.checkpoint_every", train.checkpoint_every, 1, True),
        ("train.keep", train.keep, 1, True),
        ("train.seed", train.seed, 0, True),
        ("train.max_skipped", train.max_skipped, 1, True),
        ("guard.window", config.guard.window, 1, True),
        ("system.fsdp", config.system.fsdp, 1, True),
        ("system.self_test", config.system.self_test, 0, True),
        ("eval.objects", config.eval.objects, 0, True),
        ("eval.skip", config.eval.skip, 0, True),
        ("eval.samples", config.eval.samples, 1, True),
    ]
    rules = {name: getattr(config.guard, name) for name in ("max_win_rise", "max_ref_distance")}
    limits += [(f"guard.{k}", value, 0, False) for k, value in rules.items() if value is not None]
    for key, value, bound, inclusive in limits:
        if not (value >= bound if inclusive else value > bound):
            relation = "at least" if inclusive else "above"
            raise UsageError(f"{key} is {value}, expected {relation} {bound}")
    for beta in optim.betas:
        if not 0 <= beta < 1:
            raise UsageError(f"optim.betas is {optim.betas}, expected two numbers in [0, 1)")
    if train.batch_size % train.accumulation:
        raise UsageError(
            f"train.batch_size {train.batch_size} is not a multiple of train.accumulation "
            f"{train.accumulation}"
        )


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The keys, as `section.field`, in which two configurations differ, with both values."""
    flat = [dict(_flatten(dataclasses.asdict(config))) for config in (old, new)]
    return {key: (flat[0][key], flat[1][key]) for key in flat[0] if flat[0][key] != flat[1][key]}


def build(cls: type[T], values: Any, where: str, key: str = "") -> T:
    """Make dataclass `cls` from plain `values`; `where` and `key` go into error messages."""
    if not isinstance(values, Mapping):
        raise UsageError(_wrong(where, key or "the file", "a mapping of keys to values", values))
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    prefix = f"{key}." if key else ""
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(fields)}"
            raise UsageError(f"{where}: unknown key {prefix}{name} ({hint})")
        arguments[name] = _convert(fields[name], value, where, prefix + name)
    try:
        return cls(**arguments)
    except ValueError as error:  # the dataclass's own check of its values
        raise UsageError(f"{where}: {error}") from None


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    """`value` as type `kind`, or a UsageError; ints pass for floats, nothing else is coerced."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where, key)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):  # X | None
        if value is None:
            return None
        (inner,) = (option for option in arguments if option is not type(None))
        return _convert(inner, value, where, key)
    if origin is Literal:
        if value in arguments:
            return value
        raise UsageError(_wrong(where, key, "one of " + ", ".join(map(str, arguments)), value))
    if origin is tuple:
        return _convert_tuple(arguments, value, where, key)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UsageError(_wrong(where, key, NAMES[kind], value))
    return value


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _convert_tuple(arguments: tuple, value: Any, where: str, key: str) -> tuple:
    endless = arguments[-1] is Ellipsis
    if not isinstance(value, list) or not (endless or len(value) == len(arguments)):
        size = "" if endless else f" of {len(arguments)} values"
        raise UsageError(_wrong(where, key, f"a list{size}", value))
    kinds = arguments[:1] * len(value) if endless else arguments
    pairs = zip(kinds, value, strict=True)
    return tuple(_convert(kind, item, where, f"{key}[{i}]") for i, (kind, item) in enumerate(pairs))


def _wrong(where: str, key: str, expected: str, value: Any) -> str:
    return f"{where}: {key}: expected {expected}, got {value!r} ({type(value).__name__})"


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """Split `--config FILE` or `--config=FILE` from the other arguments."""
    path, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
            continue
        given = value if equals else next(arguments, None)
        if not given or path is not None:
            raise UsageError("--config: expected exactly one file")
        path = given
    return path, rest


def _plain(value: Any) -> Any:
    """Tuples as lists, which is how YAML reads them back."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
