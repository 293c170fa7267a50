"""Prepared files, cut into what is simulated together."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence

from sim_mjx.perturb import body_bytes
from sim_mjx.plan import Plan
from sim_mjx.prepare import Prepared
from sim_mjx.task import Progress

# Bodies held at once by one half-read block; a block of huge hulls is simulated in pieces.
PIECE_BYTES = 2**32


@dataclasses.dataclass(frozen=True)
class Piece:
    """Files that are simulated together: a block, or a part of one with huge hulls."""

    block: int
    items: list[Prepared]
    last: bool  # the block ends here

    def without_bodies(self) -> Piece:
        """The same files, once their bodies have been put together elsewhere."""
        items = [dataclasses.replace(item, body=None) for item in self.items]
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
        held, left = 0, len(plan.paths(block))
        while left:
            if stop.is_set():
                return
            item = next(prepared)
            report("read", 1)
            items.append(item)
            left -= 1
            held += 0 if item.body is None else body_bytes(item.body)
            if held > PIECE_BYTES or not left:
                yield Piece(block, items, last=not left)
                items, held = [], 0
