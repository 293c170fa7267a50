"""A lane: one pool of slots for one shape of body, and whose body sits in which slot.

Legend: S slots, B bodies of a batch, R rows of a packet.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from sim_mjx import world
from sim_mjx.pool import Outcome, Programs


@dataclasses.dataclass(eq=False)
class Batch:
    """Bodies that were put in together, and how they ended so far.

    Attributes:
        tag: comes back with the result.
        body: what is simulated; None once all of it is on its way to a device.
        reasons: per body None, or why it is not simulated.
        left: bodies that are not done.
        unsent: of them, those that have not been sent.
        size: bytes of `body`.
    """

    tag: Any
    body: world.Body | None
    reasons: list[str | None]
    left: int
    unsent: int
    size: int
    pose: Float[np.ndarray, "B 7"]
    steps: Int[np.ndarray, " B"]
    at_rest: Bool[np.ndarray, " B"]

    @classmethod
    def of(cls, body: world.Body, reasons: list[str | None], tag: Any) -> Batch:
        """Nothing of it has been dropped yet."""
        valid = sum(reason is None for reason in reasons)
        return cls(
            tag=tag,
            body=body,
            reasons=reasons,
            left=valid,
            unsent=valid,
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
        """The next rows, at most so many in all.

        Ends with a batch once there are half as many, so that most packets are of one batch.
        """
        taken, enough = [], most // 2
        while most > enough and self._parts:
            batch, rows = self._parts.popleft()
            if len(rows) > most:
                self._parts.appendleft((batch, rows[most:]))
                rows = rows[:most]
            taken.append((batch, rows))
            most -= len(rows)
            self.count -= len(rows)
        return taken


@dataclasses.dataclass(eq=False)
class _Packet:
    """R rows on the device.

    Attributes:
        rows: the numbers, which may still be on their way.
        owner, row: of each body its batch, by the lane's number, and its row there.
        begin: where the bodies begin among the rows.
        first: bodies before this one have a slot.
    """

    rows: Future[world.Body]
    owner: Int[np.ndarray, " n"]
    row: Int[np.ndarray, " n"]
    begin: int
    first: int = 0

    @property
    def left(self) -> int:
        """Bodies without a slot."""
        return len(self.owner) - self.first


_Rows = tuple[world.Body, Int[np.ndarray, " n"]]  # bodies of a batch, and which of them


class _Turn(NamedTuple):
    """One check that the device was told to do, and what it will say of it."""

    inserted: list[tuple[_Packet, Any]]  # the slot of each row
    outcome: Outcome


class Lane:
    """A pool and its bookkeeping; used by one thread.

    The host may order turns before it knows how earlier ones ended, so what it knows of slots is
    what was so `pending` turns ago; the device knows better.

    Args:
        programs: of its shape.
        slots: of the pool.
        rows: of a packet.
        submit: calls a function, in another thread or as `at_once` does: bodies are put together
            and sent by it.
    """

    def __init__(self, programs: Programs, slots: int, rows: int, submit: Callable[..., Future]):
        self.rows, self._slots, self._submit = rows, slots, submit
        self._programs, self._pool = programs, None
        # Of each slot the number of the batch and the body's row there; of each number the batch.
        self._owner, self._row = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        self._batches: dict[int, Batch] = {}
        self._inside: collections.Counter[int] = collections.Counter()
        self._number = itertools.count()
        self._seated, self._ended = 0, 0
        self._ready: collections.deque[_Packet] = collections.deque()
        self._turns: collections.deque[_Turn] = collections.deque()

    @property
    def held(self) -> int:
        """Bodies in slots and in packets, as far as the host knows."""
        return self._seated + self.ready + sum(p.left for t in self._turns for p, _ in t.inserted)

    @property
    def ready(self) -> int:
        """Bodies in packets that wait for a turn."""
        return sum(packet.left for packet in self._ready)

    @property
    def packets(self) -> int:
        """Packets that wait for a turn."""
        return len(self._ready)

    @property
    def pending(self) -> int:
        """Turns that were ordered and not recorded."""
        return len(self._turns)

    @property
    def wanted(self) -> int:
        """Bodies to bring along to the next turn: for slots that are free, or will be by then."""
        going = sum(packet.left for turn in self._turns for packet, _ in turn.inserted)
        free = self._slots - self._seated - going
        return max(0, free) + len(self._turns) * self._ended

    def upload(self, parts: list[tuple[Batch, np.ndarray]]) -> None:
        """Sends at most R bodies to the device; does not wait."""
        numbers = [next(self._number) for _ in parts]
        for number, (batch, rows) in zip(numbers, parts, strict=True):
            self._batches[number], self._inside[number] = batch, len(rows)
        owner = np.repeat(numbers, [len(rows) for _, rows in parts])
        row = np.concatenate([rows for _, rows in parts])
        bodies = []
        for batch, rows in parts:
            assert batch.body is not None, "rows of a batch that has been sent"
            bodies.append((batch.body, rows))
        begin = _window(bodies, self.rows)
        sent = self._submit(_send, self._programs, bodies, self.rows, begin)
        self._ready.append(_Packet(sent, owner, row, begin or 0))

    def advance(self) -> None:
        """Orders the steps up to the next check, with new bodies in free slots; does not wait."""
        inserted, wanted = [], self.wanted
        while self._ready and wanted > 0:
            packet = self._ready.popleft()
            bodies = packet.rows.result()
            if self._pool is None:
                self._pool = self._programs.empty(bodies)
            ends = packet.begin + np.array([packet.first, len(packet.owner)], np.int32)
            self._pool, slot = self._programs.insert(self._pool, bodies, ends)
            inserted.append((packet, slot))
            wanted -= packet.left
        assert self._pool is not None, "a turn without any body"
        self._pool, outcome = self._programs.advance(self._pool)
        turn = _Turn(inserted, outcome)
        jax.copy_to_host_async(([slot for _, slot in inserted], outcome))
        self._turns.append(turn)

    def record(self) -> Iterator[tuple[Batch, int]]:
        """Waits for the oldest turn and writes into the batches what has ended.

        Yields:
            A batch, and how many of its bodies have just ended.
        """
        turn = self._turns.popleft()
        for packet, slots in turn.inserted:
            self._seat(packet, np.asarray(slots))
        # In the order in which they came.
        self._ready.extendleft(p for p, _ in reversed(turn.inserted) if p.left)
        done = np.flatnonzero(turn.outcome.finished)
        self._ended = len(done)
        if not len(done):
            return
        pose, steps, at_rest, _ = (np.asarray(leaf) for leaf in turn.outcome)
        owner = self._owner[done]
        self._seated -= len(done)
        for number in np.unique(owner).tolist():
            slots, batch = done[owner == number], self._batches[number]
            rows = self._row[slots]
            batch.pose[rows], batch.steps[rows] = pose[slots], steps[slots]
            batch.at_rest[rows] = at_rest[slots]
            self._inside[number] -= len(slots)
            if not self._inside[number]:
                del self._inside[number], self._batches[number]
            yield batch, len(slots)

    def _seat(self, packet: _Packet, slots: Int[np.ndarray, " R"]) -> None:
        rows = np.flatnonzero(slots >= 0)
        body, slots = rows - packet.begin, slots[rows]
        self._owner[slots], self._row[slots] = packet.owner[body], packet.row[body]
        self._seated += len(rows)
        packet.first += len(rows)


def at_once(function: Callable, *arguments: Any) -> Future:
    """Calls the function here; it has been called when this returns."""
    called: Future = Future()
    called.set_result(function(*arguments))
    return called


def _window(parts: Sequence[_Rows], count: int) -> int | None:
    """Where these bodies begin within R consecutive rows of their batch.

    None if they are not a run, or their batch is smaller.
    """
    body, rows = parts[0]
    size = len(body.mass)
    if len(parts) > 1 or size < count or rows[-1] - rows[0] != len(rows) - 1:
        return None
    return int(rows[0] - min(rows[0], size - count))


def _send(programs: Programs, parts: Sequence[_Rows], count: int, begin: int | None) -> world.Body:
    """Bodies to the device: from where they are, or put together and filled up to R."""
    body, rows = parts[0]
    if begin is not None:
        first = rows[0] - begin
        return programs.upload(jax.tree.map(lambda leaf: leaf[first : first + count], body))
    leaves, structure = jax.tree.flatten(body)
    leaves = [np.zeros((count, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
    at = 0
    for body, rows in parts:
        for leaf, source in zip(leaves, jax.tree.leaves(body), strict=True):
            leaf[at : at + len(rows)] = source[rows]
        at += len(rows)
    return programs.upload(jax.tree.unflatten(structure, leaves))
