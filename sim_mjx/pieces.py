"""Prepared files, cut into what is simulated together."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence

from sim_mjx.plan import Plan
from sim_mjx.prepare import Prepared
from sim_mjx.task import Progress

# Bodies of one half-read block; a block of huge hulls is simulated in pieces. Three times as much
# is held while they are put together.
PIECE_BYTES = 2**30
# Bodies of all pieces that have no rows yet.
ROOM_BYTES = 2**32


@dataclasses.dataclass(frozen=True)
class Piece:
    """Files that are simulated together: a block, or a part of one with huge hulls."""

    block: int
    number: int  # in the block
    items: list[Prepared]
    last: bool  # the block ends here

    def without_bodies(self) -> Piece:
        """The same files, once their bodies have been put together elsewhere."""
        items = [dataclasses.replace(item, packed=None) for item in self.items]
        return dataclasses.replace(self, items=items)


def pieces(
    plan: Plan,
    todo: Sequence[int],
    prepared: Iterator[Prepared],
    stop: threading.Event,
    report: Progress,
) -> Iterator[Piece]:
    """The pieces of blocks, in order.

    Args:
        plan: of the job.
        todo: numbers of the blocks.
        prepared: their files, in order.
        stop: ends the iteration between two files.
        report: is told of every file that was read.
    """
    for block in todo:
        items: list[Prepared] = []
        number, held, left = 0, 0, len(plan.paths(block))
        while left:
            if stop.is_set():
                return
            item = next(prepared)
            report("read", 1)
            items.append(item)
            left -= 1
            held += 0 if item.packed is None else len(item.packed.row)
            if held > PIECE_BYTES or not left:
                yield Piece(block, number, items, last=not left)
                items, held, number = [], 0, number + 1


class Room:
    """Bounds the bytes between one thread that takes and another that gives back.

    Attributes:
        abandoned: set once nobody gives back any more.
    """

    def __init__(self, size: int = ROOM_BYTES):
        self.abandoned = threading.Event()
        self._size, self._taken, self._lock = size, 0, threading.Condition()

    def take(self, size: int) -> bool:
        """Waits for room; what is larger than all of it waits until all is free.

        Returns:
            False if the room was abandoned, and nothing is taken.
        """
        with self._lock:
            while self._taken and self._taken + size > self._size and not self.abandoned.is_set():
                self._lock.wait()
            self._taken += size
            return not self.abandoned.is_set()

    def give(self, size: int) -> None:
        """So much is free again."""
        with self._lock:
            self._taken -= size
            self._lock.notify_all()

    def abandon(self) -> None:
        """Nothing will be given back: whoever waits goes on."""
        with self._lock:
            self.abandoned.set()
            self._lock.notify_all()
