"""A lane: one pool of slots for one shape of body, and whose body sits in which slot.

Legend: S slots, B bodies of a batch, R rows of a packet.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from sim_mjx import world
from sim_mjx.pool import Outcome, Pool, Programs


@dataclasses.dataclass(eq=False)
class Batch:
    """Bodies that were put in together, and how they ended so far.

    Attributes:
        tag: comes back with the result.
        body: what is simulated.
        reasons: per body None, or why it is not simulated.
        left: bodies that are not done.
        size: bytes of `body`.
    """

    tag: Any
    body: world.Body
    reasons: list[str | None]
    left: int
    size: int
    pose: Float[np.ndarray, "B 7"]
    steps: Int[np.ndarray, " B"]
    at_rest: Bool[np.ndarray, " B"]

    @classmethod
    def of(cls, body: world.Body, reasons: list[str | None], tag: Any) -> Batch:
        """Nothing of it has been dropped yet."""
        return cls(
            tag=tag,
            body=body,
            reasons=reasons,
            left=sum(reason is None for reason in reasons),
            size=sum(leaf.nbytes for leaf in jax.tree.leaves(body)),
            pose=np.tile(np.array([0, 0, 0, 1, 0, 0, 0], np.float32), (len(reasons), 1)),
            steps=np.zeros(len(reasons), np.int64),
            at_rest=np.zeros(len(reasons), bool),
        )


class Waiting:
    """Bodies of one shape that wait for a slot, first come first served.

    Attributes:
        count: how many.
    """

    def __init__(self) -> None:
        self._parts: collections.deque[tuple[Batch, np.ndarray]] = collections.deque()
        self.count = 0

    def add(self, batch: Batch, rows: Int[np.ndarray, " n"]) -> None:
        """These rows of a batch come last."""
        if len(rows):
            self._parts.append((batch, rows))
            self.count += len(rows)

    def take(self, most: int) -> list[tuple[Batch, np.ndarray]]:
        """The next rows, at most so many in all."""
        taken = []
        while most > 0 and self._parts:
            batch, rows = self._parts.popleft()
            if len(rows) > most:
                self._parts.appendleft((batch, rows[most:]))
                rows = rows[:most]
            taken.append((batch, rows))
            most -= len(rows)
            self.count -= len(rows)
        return taken


@dataclasses.dataclass
class _Packet:
    """R rows on the device: those of `sits`, of which `used` have a slot, then padding."""

    rows: world.Body
    sits: list[tuple[Batch, int]]  # a batch, and the body's row there
    used: int = 0


class Lane:
    """A pool and its bookkeeping; used by one thread.

    Args:
        programs: of its shape.
        slots: of the pool.
        rows: of a packet.
    """

    def __init__(self, programs: Programs, slots: int, rows: int):
        self.slots, self.rows = slots, rows
        self._programs, self._pool = programs, None
        self._sits: list[tuple[Batch, int] | None] = [None] * slots
        self._active = np.zeros(slots, bool)
        self._ready: collections.deque[_Packet] = collections.deque()

    @property
    def free(self) -> int:
        """Slots without a body."""
        return self.slots - int(self._active.sum())

    @property
    def ready(self) -> int:
        """Bodies on the device that have no slot yet."""
        return sum(len(packet.sits) - packet.used for packet in self._ready)

    @property
    def packets(self) -> int:
        """Packets on the device with such bodies."""
        return len(self._ready)

    @property
    def held(self) -> int:
        """Bodies in slots and in packets."""
        return self.slots - self.free + self.ready

    def upload(self, parts: list[tuple[Batch, np.ndarray]]) -> None:
        """Sends at most R bodies to the device, where they wait for a slot."""
        first = jax.tree.leaves(parts[0][0].body)
        leaves = [np.zeros((self.rows, *leaf.shape[1:]), leaf.dtype) for leaf in first]
        begin, sits = 0, []
        for batch, rows in parts:
            end = begin + len(rows)
            for target, source in zip(leaves, jax.tree.leaves(batch.body), strict=True):
                target[begin:end] = source[rows]
            sits += [(batch, row) for row in rows.tolist()]
            begin = end
        body = jax.tree.unflatten(jax.tree.structure(parts[0][0].body), leaves)
        self._ready.append(_Packet(self._programs.upload(body), sits))

    def fill(self) -> None:
        """Gives the bodies on the device the slots that are free."""
        free = np.flatnonzero(~self._active)
        while len(free) and self._ready:
            packet = self._ready[0]
            sits = packet.sits[packet.used :][: len(free)]
            taken, free = free[: len(sits)], free[len(sits) :]
            slot = np.full(self.rows, self.slots, np.int32)
            slot[packet.used :][: len(sits)] = taken
            pool = self._programs.empty(packet.rows) if self._pool is None else self._pool
            self._pool = self._programs.insert(pool, packet.rows, self._programs.upload(slot))
            for place, sitting in zip(taken.tolist(), sits, strict=True):
                self._sits[place] = sitting
            self._active[taken] = True
            packet.used += len(sits)
            if packet.used == len(packet.sits):
                self._ready.popleft()

    def advance(self) -> Outcome:
        """Starts the steps up to the next check; returns before they are done."""
        pool: Pool | None = self._pool
        assert pool is not None, "advance before fill"
        self._pool, outcome = self._programs.advance(pool)
        return outcome

    def record(self, outcome: Outcome) -> Iterator[tuple[Batch, int]]:
        """Waits for the check, writes into the batches what has ended and frees its slots.

        Yields:
            A batch, and how many of its bodies have just ended.
        """
        done = np.flatnonzero(self._active & np.asarray(outcome.finished))
        if not len(done):
            return
        pose, steps, at_rest = map(np.asarray, (outcome.pose, outcome.steps, outcome.at_rest))
        ended: dict[Batch, list[tuple[int, int]]] = collections.defaultdict(list)
        for slot in done.tolist():
            batch, row = self._sits[slot] or (None, 0)
            assert batch is not None, "an active slot without a body"
            ended[batch].append((slot, row))
            self._sits[slot] = None
        self._active[done] = False
        for batch, pairs in ended.items():
            slots, rows = np.array(pairs).T
            batch.pose[rows], batch.steps[rows] = pose[slots], steps[slots]
            batch.at_rest[rows] = at_rest[slots]
            yield batch, len(rows)
