"""The labelling job: any number of files, killed at any moment, on any number of machines.

The files are cut into numbered blocks, in order. The rows of a block appear under their final name
at once (`labels.parquet.parts/00000.parquet`), so a part that exists is done and a kill costs at
most the blocks in flight. A resumed, a sharded and an undisturbed job give the same rows: with the
slim step, as in C, a label depends on nothing but its file, so that blocks share the slots of the
engine; the stock step drops each block by itself. Shard i of n takes the blocks i, i + n, ...;
whoever finds all parts in place joins them into the table and removes them.

One thread reads and feeds the engine, which runs without pause at the ends of blocks; one makes
rows of what comes out. The bodies between them are bounded by bytes, whatever the number of files.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
import time
from collections.abc import Generator, Iterator, Sequence

import jax
import pyarrow as pa
import pyarrow.parquet as pq

from sim_mjx import label, rows
from sim_mjx.clock import Clock, Occupied, compilation
from sim_mjx.parts import InvalidFileError, Parts, refuse_invalid
from sim_mjx.pieces import Room, pieces
from sim_mjx.plan import Plan, PlanError, discard, folder
from sim_mjx.prepare import Prepared, prepare
from sim_mjx.prepare_device import prepare_on_device
from sim_mjx.task import Progress, Task

__all__ = ["Clock", "InvalidFileError", "merge", "run"]


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
        cache: folder of bodies made before, see `prepare`; not for bodies made on the device.
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
    report, clock = progress or (lambda *_: None), clock or Clock()
    room, drops, inside = Room(), rows.Drops(task, report), Occupied(clock)
    started, before = time.perf_counter(), clock.simulating
    with (
        contextlib.closing(_bodies(plan, todo, task, workers, cache)) as prepared,
        concurrent.futures.ThreadPoolExecutor(1, "read") as reader,
        Parts(plan, task, out, strict, report, clock, room) as parts,
        compilation(clock.compiled),
        task.engine.stream(task.protocol, drops) as stream,
        _abandoned_at_exit(room),  # first of all, so that no thread goes on for nothing
    ):

        def feed() -> None:
            with contextlib.closing(stream):
                for piece in pieces(plan, todo, prepared, room.abandoned, report):
                    groups = rows.groups(piece.items, task)
                    parts.begin(piece.without_bodies(), groups)
                    for group in groups:
                        if not room.take(group.size):
                            return
                        inside.enter()
                        rows.put(group, stream)

        feeding = reader.submit(feed)
        for (group, part), rest in stream.results():
            if group.take(part, rest):
                inside.leave()
                parts.finish(group)
        clock.waiting += time.perf_counter() - started - (clock.simulating - before)
        parts.wait()
        feeding.result()
    drops.finish(sum(len(plan.paths(block)) for block in todo))
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


def _bodies(
    plan: Plan, todo: Sequence[int], task: Task, workers: int | None, cache: pathlib.Path | None
) -> Generator[Prepared, None, None]:
    """The files of some blocks, prepared, in order."""
    paths = (path for block in todo for path in plan.paths(block))
    if task.preparation == "device":
        return prepare_on_device(paths, task.protocol, workers=workers)
    return prepare(paths, task.protocol, workers=workers, cache=cache)


@contextlib.contextmanager
def _abandoned_at_exit(room: Room) -> Iterator[None]:
    try:
        yield
    finally:
        room.abandon()


def _own_share() -> tuple[int, int]:
    # Asking JAX for its processes starts its devices, which C MuJoCo does not need.
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()
