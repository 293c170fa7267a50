"""Proof that what was written is what was meant: tensor by tensor, and one forward of each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from dso_jax.models import FlowConfig, LoRAConfig, apply_flow
from weight_port import convert
from weight_port.convert import Slot
from weight_port.errors import Problem, report

CONDITION_TOKENS = 8  # enough to reach every weight of cross-attention
# A forward of the published model on all its 16^3 tokens takes minutes on a CPU and gigabytes for
# its attention; a corner of the grid goes through the same weights.
MAX_EDGE = 8  # tokens
# One program, run twice on equal weights, may differ on a GPU in the order of its sums.
SAME_PROGRAM = 1e-5
# Two programs that are one model in exact arithmetic: beside the adapter, or folded in.
SAME_MODEL = 1e-4


class Difference(NamedTuple):
    """Two forwards on the same noise.

    Attributes:
      largest: max |a - b|.
      scale: max |b|.
    """

    largest: float
    scale: float


def match(
    slots: Sequence[Slot],
    expected: Mapping,
    found: Mapping,
    *,
    source: str,
    half: DTypeLike | None = None,
) -> int:
    """Compares two parameter trees tensor by tensor.

    Args:
      source: what an error calls `found`.
      half: where a rule allows 16 bits, `found` may be `expected` rounded to this type: each number
        then is off by half a unit in its last place at most. None: all are equal.

    Returns:
      The number of torch tensors; all of them match.

    Raises:
      WeightError: names the tensors that do not, or are not finite.
    """
    flat, other = convert.flatten(expected), convert.flatten(found)
    problems = []
    for slot in slots:
        unit, tiny = rounding(half) if slot.rule.half and half is not None else (0.0, 0.0)
        pairs = zip(*(slot.views(np.asarray(f[slot.path])) for f in (flat, other)), strict=True)
        for name, (a, b) in zip(slot.names, pairs, strict=True):
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            if not np.all(np.isfinite(a)):
                problems.append(Problem("value", name, "holds NaN or infinity"))
            elif not np.all(np.abs(a - b) <= unit * np.abs(a) + tiny):
                gap = np.abs(a - b).max()
                problems.append(Problem("value", name, f"differs by up to {gap:.3g}"))
    if problems:
        raise report(source, "what was to be written", problems)
    return sum(len(slot.names) for slot in slots)


def rounding(dtype: DTypeLike) -> tuple[float, float]:
    """(u, s): rounding x to the nearest number of a type is off by at most u |x| + s.

    u is half of the spacing at 1, s half of the smallest number above 0.
    """
    info = ml_dtypes.finfo(dtype)
    return float(info.eps) / 2, float(info.smallest_subnormal) / 2


def velocity(config: FlowConfig, params: dict, lora: LoRAConfig | None = None) -> np.ndarray:
    """One fp32 forward, at t = 0.5, of noise that depends on the sizes alone.

    A model of more than `MAX_EDGE`^3 tokens is run on the first of each axis.
    """
    config, params = _corner(config, params)
    rng = np.random.default_rng(0)
    edge = (config.resolution,) * 3
    x = rng.normal(size=(1, config.in_channels, *edge)).astype(np.float32)
    cond = rng.normal(size=(1, CONDITION_TOKENS, config.cond_channels)).astype(np.float32)
    return np.asarray(_program(config, lora)(params, x, np.full(1, 0.5, np.float32), cond))


def _corner(config: FlowConfig, params: dict) -> tuple[FlowConfig, dict]:
    """The model on a part of its grid: the rows of the positional table that belong to it."""
    edge = config.resolution // config.patch_size
    if edge <= MAX_EDGE:
        return config, params
    table = params["pos_emb"].reshape(edge, edge, edge, -1)[(slice(MAX_EDGE),) * 3]
    smaller = dataclasses.replace(config, resolution=MAX_EDGE * config.patch_size)
    return smaller, {**params, "pos_emb": table.reshape(MAX_EDGE**3, -1)}


def difference(found: np.ndarray, expected: np.ndarray) -> Difference:
    """Of two velocities."""
    return Difference(float(np.abs(found - expected).max()), float(np.abs(expected).max()))


@functools.cache
def _program(config: FlowConfig, lora: LoRAConfig | None) -> Callable:
    return jax.jit(functools.partial(apply_flow, config, lora=lora, attention="xla"))
