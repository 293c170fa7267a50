"""The parts of a labelling job: rows of what was dropped, and a file of each complete block."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sim_mjx import label, rows
from sim_mjx.clock import Clock
from sim_mjx.pieces import Piece, Room
from sim_mjx.plan import Plan, PlanError
from sim_mjx.rest import INVALID
from sim_mjx.rows import Group
from sim_mjx.task import Progress, Task


class InvalidFileError(ValueError):
    """A file without a label, where all must have one."""


@dataclasses.dataclass(eq=False)
class _Open:
    """A piece of which some groups are still in the engine."""

    piece: Piece
    left: int
    filled: list[dict[str, Any]]


class Parts:
    """Makes rows in a thread of its own, and a part of each block whose pieces are all there.

    Groups of several blocks may come in any order. An error ends the thread's work and abandons the
    room, so that nobody waits for it; `finish` and `wait` raise it.

    Args:
        plan: of the job.
        task: what is done with every file.
        out: the table to be.
        strict: a file without a label is an error.
        report: is told of rows.
        clock: gets the seconds that this took.
        room: gets back the bytes of groups.
    """

    def __init__(
        self,
        plan: Plan,
        task: Task,
        out: pathlib.Path,
        strict: bool,
        report: Progress,
        clock: Clock,
        room: Room,
    ):
        self._plan, self._task, self._out, self._strict = plan, task, out, strict
        self._report, self._clock, self._room = report, clock, room
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "finish")
        self._futures: collections.deque[concurrent.futures.Future] = collections.deque()
        # What follows belongs to the thread.
        self._open: dict[Group, _Open] = {}
        self._tables: dict[int, dict[int, pa.Table]] = collections.defaultdict(dict)
        self._pieces: dict[int, int] = {}  # of each block that was read to its end

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._executor.shutdown(cancel_futures=kind is not None)

    def begin(self, piece: Piece, groups: Sequence[Group]) -> None:
        """These groups of a piece will come."""
        self._submit(self._begin, piece, groups)

    def finish(self, group: Group) -> None:
        """All drops of a group have ended."""
        self._submit(self._finish, group)
        while self._futures and self._futures[0].done():
            self._futures.popleft().result()

    def wait(self) -> None:
        """Returns when everything so far is done."""
        while self._futures:
            self._futures.popleft().result()

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        future = self._executor.submit(work, *arguments)
        future.add_done_callback(self._ended)
        self._futures.append(future)

    def _ended(self, future: concurrent.futures.Future) -> None:
        if not future.cancelled() and future.exception() is not None:
            self._room.abandon()

    def _begin(self, piece: Piece, groups: Sequence[Group]) -> None:
        with self._timed():
            opened = _Open(piece, len(groups), rows.blank(piece.items, self._task))
            self._open.update(dict.fromkeys(groups, opened))
            if not groups:
                self._complete(opened)

    def _finish(self, group: Group) -> None:
        with self._timed():
            opened = self._open.pop(group)
            rows.fill(opened.filled, group, self._task)
            self._room.give(group.size)
            opened.left -= 1
            if not opened.left:
                self._complete(opened)

    def _complete(self, opened: _Open) -> None:
        table, piece = rows.table(opened.filled, self._task, self._report), opened.piece
        if self._strict:
            refuse_invalid(table)
        tables = self._tables[piece.block]
        tables[piece.number] = table
        if piece.last:
            self._pieces[piece.block] = piece.number + 1
        if len(tables) != self._pieces.get(piece.block):
            return
        del self._tables[piece.block]
        part = self._plan.part(self._out, piece.block)
        try:
            label.write_labels(pa.concat_tables([tables[i] for i in range(len(tables))]), part)
        except OSError as error:
            raise PlanError(f"{part}: cannot write: {error}") from error

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._clock.finishing += time.perf_counter() - started


def refuse_invalid(table: pa.Table) -> None:
    """Raises at a row without a label.

    Raises:
        InvalidFileError: naming the first such file and why.
    """
    invalid = table.filter(pc.equal(table["status"], INVALID)).to_pylist()
    if invalid:
        first = invalid[0]
        raise InvalidFileError(f"{first['path']} cannot be labelled ({first['reason']})")
