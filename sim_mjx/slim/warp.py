"""What a warp of a kernel reads and writes.

Legend: S bodies, K support points, W bodies of a warp, C contacts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sim_mjx.contact import CONTACTS
from sim_mjx.slim.vectors import Scalar, Vector

WARP = 32
# Points looked at between two tests of the loop over all: each is on its way from memory at once.
# The compiler takes a tenth of a second or more for each, so only where it counts.
UNROLLED, SELDOM = 8, 2


def any_of(live: Bool[Array, " W"]) -> Bool[Array, ""]:
    """Whether one of a warp's bodies is."""
    return jnp.max(live.astype(jnp.int32)) > 0


class Memory:
    """What a warp reads and writes.

    A thread reads numbers that lie side by side as a row of (W, 4), so that each access is one of
    16 bytes; arrays over contacts (C, W) never meet memory, and stay in registers.

    Args:
        refs: arrays by name.
        begin: the warp's first body.

    Attributes:
        mine: the warp's bodies.
        lane: each thread's body.
    """

    def __init__(self, refs: dict[str, Any], begin: Int[Array, ""]):
        from jax.experimental import pallas as pl

        self.refs, self.mine = refs, pl.ds(begin, WARP)
        self.lane = begin + jnp.arange(WARP, dtype=jnp.int32)
        self._place = jax.lax.broadcasted_iota(jnp.int32, (WARP, 4), 1)
        self._contact = jax.lax.broadcasted_iota(jnp.int32, (CONTACTS, WARP), 0)

    def point(self, index: Int[Array, ""] | Int[Array, " W"]) -> Vector:
        """The same point of every body, or one of each."""
        if index.ndim:
            x, y, z, _ = self._four("points", self._wide(index), self._wide(self.lane), self._place)
        else:
            x, y, z, _ = self._four("points", index, self.mine, slice(None))
        return x, y, z

    def numbers(self, row: int) -> list[Scalar]:
        """Four numbers of each body."""
        return self._four("numbers", row, self.mine, slice(None))

    def corners(self, entry: Int[Array, " W"]) -> list[Int[Array, " W"]]:
        """The contacts of an entry of the polygon table."""
        return self._four("contacts", self._wide(self.lane), self._wide(entry), self._place)

    def put(self, ref: Any, values: Sequence[Scalar]) -> None:
        """Writes numbers as a packed array."""
        for row in range(ref.shape[0]):
            tile = jnp.zeros(self._place.shape, ref.dtype)
            for k, value in enumerate(values[4 * row : 4 * row + 4]):
                tile = jnp.where(self._place == k, value[:, None], tile)
            ref[row, self.mine, :] = tile

    def over_contacts(self, values: Sequence[Any]) -> Any:
        """One array (C, W) of a value for each contact."""
        array = jnp.broadcast_to(values[0][None], self._contact.shape)
        for k, value in enumerate(values[1:], 1):
            array = jnp.where(self._contact == k, value[None], array)
        return array

    def _four(self, name: str, *index: Any) -> list[Any]:
        values = self.refs[name][index]
        if not jnp.issubdtype(values.dtype, jnp.floating):
            values = values.astype(jnp.int32)
        # Sums of integers, of which all but one are zero and go at compile time.
        whole = {4: jnp.int32, 8: jnp.int64}[values.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(values, whole)
        parts = [jnp.where(self._place == k, bits, 0).sum(axis=1, dtype=whole) for k in range(4)]
        return [jax.lax.bitcast_convert_type(part, values.dtype) for part in parts]

    def _wide(self, values: Int[Array, " W"]) -> Int[Array, "W 4"]:
        return jnp.broadcast_to(values[:, None], self._place.shape)

    def scan(
        self,
        start: Any,
        look: Callable[[Any, Vector, Any], Any],
        *,
        wanted: Bool[Array, ""] | None = None,
        unrolled: int = UNROLLED,
    ) -> Any:
        """`look(values, point, index)` over all support points, from the first to the last.

        Args:
            start: values before the first.
            look: gives the values after a point.
            wanted: whether the warp needs it at all, else `start` is what comes out.
            unrolled: points between two tests of the loop.
        """
        count = self.refs["points"].shape[0]
        assert count % unrolled == 0, "points of no bucket"

        def some(turn, values):
            for k in range(unrolled):
                index = turn * unrolled + k
                values = look(values, self.point(index), index)
            return values

        turns = count // unrolled
        if wanted is not None:
            turns = turns * wanted.astype(jnp.int32)
        return jax.lax.fori_loop(0, turns, some, start)
