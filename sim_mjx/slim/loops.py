"""Loops of a batch in which every body ends when it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

T = TypeVar("T")


class Machine(NamedTuple):
    """How the same arithmetic is laid out for what runs it.

    Attributes:
        any_live: from the bodies that need another round to whether one does, by which a loop ends
            before its cap. None where that test is a round trip between host and accelerator:
            masked rounds up to the cap are cheaper.
        stacked: candidates that are looked at together are one array, else one after the other.
    """

    any_live: Callable[[Any], Any] | None
    stacked: bool


def repeat(
    cap: int,
    unfinished: Callable[[T], Bool[Array, " S"]],
    improve: Callable[[T], T],
    start: T,
    *,
    machine: Machine,
    live: Bool[Array, " S"] | None = None,
) -> T:
    """At most `cap` rounds of `improve`; a body that is finished keeps its values.

    Args:
        cap: most rounds.
        unfinished: which bodies need another round.
        improve: one round of all bodies.
        start: values before the first round, a tree of arrays over the batch.
        machine: what runs it.
        live: bodies for which anyone waits; by default all.
    """

    def advance(carry):
        values, live = carry
        after = improve(values)
        values = jax.tree.map(lambda new, old: jnp.where(live, new, old), after, values)
        return values, live & unfinished(values)

    first = unfinished(start)
    carry = (start, first if live is None else first & live)
    any_live = machine.any_live
    if any_live is None:
        return jax.lax.fori_loop(0, cap, lambda _, c: advance(c), carry)[0]
    return jax.lax.while_loop(
        lambda c: (c[0] < cap) & any_live(c[1][1]),
        lambda c: (c[0] + 1, advance(c[1])),
        (0, carry),
    )[1][0]
