"""Floating-point operations of a traced program, counted where they are: in its matrix products.

Those inside cuDNN's attention count too: two forward, and five backward, which makes the scores a
second time.

The compiler's cost analysis counts the body of a loop once, however often it turns, and so a
scanned transformer as one block. Here a scan counts as often as it turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from dso_jax.models.remat import FLASH_FORWARD

FLASH_PRODUCTS = {FLASH_FORWARD: 2, "dot_product_attention_bwd_wrapper": 5}


def count(function: Callable, *arguments: Any) -> int:
    """Multiplications and additions of the matrix products of `function(*arguments)`.

    The backward pass counts as it is, recomputation included; over all devices.
    """
    # What is jitted with options of the compiler may not be traced inside anything else.
    trace = getattr(function, "trace", None) or jax.jit(function).trace
    return _count(trace(*arguments).jaxpr.jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape  # type: ignore[attr-defined]
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)  # type: ignore[attr-defined]
        if eqn.primitive.name in FLASH_PRODUCTS:
            (batch, queries, heads, width), (_, keys, *_) = (
                var.aval.shape  # type: ignore[attr-defined]
                for var in eqn.invars[:2]
            )
            product = 2 * batch * heads * queries * keys * width
            total += FLASH_PRODUCTS[eqn.primitive.name] * product
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
