"""Floating-point operations of a traced program, counted where they are: in its matrix products.

The compiler's cost analysis counts the body of a loop once, however often it turns, and so a
scanned transformer as one block. Here a scan counts as often as it turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count(function: Callable, *arguments: Any) -> int:
    """Multiplications and additions of the matrix products of `function(*arguments)`.

    The backward pass counts as it is, recomputation included; over all devices.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape  # type: ignore[attr-defined]
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)  # type: ignore[attr-defined]
        inner = [_count(sub) for sub in _subprograms(eqn.params)]
        if eqn.primitive.name == "cond":  # one of its branches runs
            total += max(inner)
        else:
            turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            total += turns * sum(inner)
    return total


def _subprograms(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
