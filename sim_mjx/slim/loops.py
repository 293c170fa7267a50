"""Loops of a batch in which every body ends when it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

T = TypeVar("T")


def repeat(
    cap: int,
    unfinished: Callable[[T], Bool[Array, " S"]],
    improve: Callable[[T], T],
    start: T,
    *,
    early: bool,
) -> T:
    """At most `cap` rounds of `improve`; a body that is finished keeps its values.

    Args:
        cap: most rounds.
        unfinished: which bodies need another round.
        improve: one round of all bodies.
        start: values before the first round, a tree of arrays over the batch.
        early: end once no body needs another round. Where that test is a round trip between host
            and accelerator, masked rounds up to the cap are cheaper.
    """

    def advance(carry):
        values, live = carry
        after = improve(values)
        values = jax.tree.map(lambda new, old: jnp.where(live, new, old), after, values)
        return values, live & unfinished(values)

    carry = (start, unfinished(start))
    if not early:
        return jax.lax.fori_loop(0, cap, lambda _, c: advance(c), carry)[0]
    return jax.lax.while_loop(
        lambda c: (c[0] < cap) & c[1][1].any(),
        lambda c: (c[0] + 1, advance(c[1])),
        (0, carry),
    )[1][0]
