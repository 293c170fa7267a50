"""The labelling job: any number of files, killed at any moment, on any number of machines.

The files are cut into numbered blocks, in order. A block is labelled as a whole and its rows appear
under their final name at once (`labels.parquet.parts/00000.parquet`), so a part that exists is done
and a kill costs at most the blocks in flight. Which files share a block decides the last bits of a
result, and blocks never depend on what ran before: a resumed, a sharded and an undisturbed job give
the same rows. Shard i of n takes the blocks i, i + n, ...; whoever finds all parts in place joins
them into the table and removes them.

While a block is simulated, the next one is read and the one before gets its rows: two blocks of
bodies are in memory, whatever the number of files.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence

import jax
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sim_mjx import label, rows
from sim_mjx.clock import Clock, compilation
from sim_mjx.pieces import Piece, pieces
from sim_mjx.plan import Plan, PlanError, discard, folder
from sim_mjx.prepare import prepare
from sim_mjx.rest import INVALID
from sim_mjx.rows import Group
from sim_mjx.task import Progress, Task


class InvalidFileError(ValueError):
    """A file without a label, where all must have one."""


def run(
    plan: Plan,
    task: Task,
    out: pathlib.Path,
    *,
    shard: tuple[int, int] | None = None,
    workers: int | None = None,
    cache: pathlib.Path | None = None,
    strict: bool = False,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> bool:
    """Labels what is not labelled yet.

    Args:
        plan: the files and blocks, see `plan.make_plan`.
        task: what is done with every file.
        out: the table; parts are kept in a folder beside it until all are there.
        shard: (i, n) takes every n-th block from the i-th on; by default this process's share of a
            multi-process JAX job, else everything.
        workers: processes that read files, see `prepare`.
        cache: folder of bodies made before, see `prepare`.
        strict: stops at the first file without a label, and the table is not written.
        progress: called as files pass each stage; those of earlier runs are not reported.
        clock: is filled with the seconds that were spent.

    Returns:
        Whether the table is complete and in place.

    Raises:
        PlanError: a part cannot be written or read.
        InvalidFileError: `strict`, and a file has no label.
    """
    if strict:
        refuse_invalid(plan.rows(out, ["path", "status", "reason"]))
    if plan.finished(out):
        return True
    todo = plan.missing(out, shard or _own_share())
    stop = threading.Event()
    report, clock = progress or (lambda *_: None), clock or Clock()
    paths = (path for block in todo for path in plan.paths(block))
    with (
        contextlib.closing(prepare(paths, task.protocol, workers=workers, cache=cache)) as prepared,
        concurrent.futures.ThreadPoolExecutor(1, "read") as reader,
        concurrent.futures.ThreadPoolExecutor(1, "finish") as finisher,
        compilation(clock),
        _set_at_exit(stop),
    ):
        writer = _Writer(plan, task, out, strict, report, clock)
        queue = pieces(plan, todo, prepared, stop, report)
        ahead, behind = reader.submit(next, queue, None), None
        while (piece := _timed(ahead, clock)) is not None:
            ahead = reader.submit(next, queue, None)
            started = time.perf_counter()
            groups = rows.simulate(piece.items, task, report)
            clock.simulating += time.perf_counter() - started
            if behind is not None:
                behind.result()
            behind = finisher.submit(writer.finish, piece.without_bodies(), groups)
        if behind is not None:
            behind.result()
    return merge(plan, task, out)


def merge(plan: Plan, task: Task, out: pathlib.Path) -> bool:
    """Joins the parts into the table and removes them, if all are there; returns whether they were.

    Several processes may find themselves the last one: each writes the same table.
    """
    if plan.missing(out, (0, 1)):
        return plan.finished(out)
    schema = task.schema().with_metadata(
        {**label.protocol_metadata(task.protocol), **plan.metadata()}
    )

    def write(path: pathlib.Path) -> None:
        with pq.ParquetWriter(path, schema) as writer:
            for block in range(plan.blocks):
                writer.write_table(pq.read_table(plan.part(out, block), schema=schema))

    try:
        label.write_whole(out, write, folder=folder(out))
    except FileNotFoundError:  # parts go only once the table is in place
        if plan.finished(out):
            discard(out)
        return plan.finished(out)
    except (OSError, pa.ArrowException) as error:
        raise PlanError(f"{out}: cannot join its parts: {error}") from error
    discard(out)
    return True


def refuse_invalid(table: pa.Table) -> None:
    """Raises at a row without a label.

    Raises:
        InvalidFileError: naming the first such file and why.
    """
    invalid = table.filter(pc.equal(table["status"], INVALID)).to_pylist()
    if invalid:
        first = invalid[0]
        raise InvalidFileError(f"{first['path']} cannot be labelled ({first['reason']})")


class _Writer:
    """Makes the rows of pieces, and a part of each block that is complete."""

    def __init__(self, plan, task: Task, out, strict: bool, report: Progress, clock: Clock):
        self.plan, self.task, self.out, self.strict = plan, task, out, strict
        self.report, self.clock = report, clock
        self.tables: list[pa.Table] = []

    def finish(self, piece: Piece, groups: Sequence[Group]) -> None:
        started = time.perf_counter()
        table = rows.rows(piece.items, groups, self.task, self.report)
        if self.strict:
            refuse_invalid(table)
        self.tables.append(table)
        if piece.last:
            table, self.tables = pa.concat_tables(self.tables), []
            part = self.plan.part(self.out, piece.block)
            try:
                label.write_labels(table, part)
            except OSError as error:
                raise PlanError(f"{part}: cannot write: {error}") from error
        self.clock.finishing += time.perf_counter() - started


def _timed(piece: concurrent.futures.Future, clock: Clock) -> Piece | None:
    started = time.perf_counter()
    result = piece.result()
    clock.waiting += time.perf_counter() - started
    return result


@contextlib.contextmanager
def _set_at_exit(event: threading.Event) -> Iterator[None]:
    """Sets the event however the block ends, so that a thread does not read on for nothing."""
    try:
        yield
    finally:
        event.set()


def _own_share() -> tuple[int, int]:
    # Asking JAX for its processes starts its devices, which C MuJoCo does not need.
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()
