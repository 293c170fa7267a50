"""`dso label`: drop meshes in the simulator and write which of them stand."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import pathlib

from rich.console import Console

from dso_jax.cli import label_arguments
from dso_jax.cli.label_monitor import Monitor, summary
from dso_jax.errors import UsageError

NAMED_FILES = 20  # invalid files that are named in the log; the table has all of them
COLUMNS = ("path", "status", "reason", "stable", "adjudicated")

_log = logging.getLogger(__name__)


def main(args: list[str]) -> int:
    """Runs the command; see `--help`.

    Raises:
        UsageError: an argument cannot be used, and nothing has been read or written; or nothing
            could be labelled.
    """
    options = label_arguments.parser().parse_args(args)
    if options.explain is not None:
        from dso_jax.cli import label_explain

        return label_explain.main(options)
    if not options.paths:
        raise UsageError("label: no PATHS to label (see dso label --help)")
    if options.prepare == "device" and options.cache is not None:
        raise UsageError("label: --cache keeps what the host made; not with --prepare device")
    shard = label_arguments.shard(options.shard)
    if options.overwrite and shard is not None:
        raise UsageError("label: --overwrite would discard the other shards' rows; run it alone")
    out = label_arguments.output(options)

    # Simulation libraries take seconds to import; `--help` and typing mistakes need not wait.
    from dso_jax.cli import label_into
    from sim_mjx import cache, dso_outputs, job, label, plan
    from sim_mjx.engines import EngineError
    from sim_mjx.perturb import PerturbError
    from sim_mjx.prepare import WorkerError
    from sim_mjx.protocol import ProtocolError

    try:
        task = _task(options)
        files = label.expand_paths(options.paths)
        if options.dso_outputs is not None:
            dso_outputs.check_names(files)
        if options.into is not None:
            label_into.check(pathlib.Path(options.into), files)
        if options.cache is not None:
            cache.check_folder(pathlib.Path(options.cache))
        work = plan.make_plan(files, task, out, block=options.block, overwrite=options.overwrite)
        complete = _run(work, task, out, options, shard)
        if complete and options.dso_outputs is not None:
            written = dso_outputs.write(out, pathlib.Path(options.dso_outputs), task.protocol)
            print(f"DSO's label files of {written} objects in {options.dso_outputs}")
        if complete and options.into is not None:
            print(label_into.replace(pathlib.Path(options.into), out))
    except (
        EngineError,
        PerturbError,
        ProtocolError,
        WorkerError,
        cache.CacheError,
        dso_outputs.OutputError,
        label.LabelError,
        plan.PlanError,
    ) as error:
        raise UsageError(f"label: {error}") from error
    except job.InvalidFileError as error:
        if shard is None:
            plan.discard(out)
        raise UsageError(f"label: --strict: {error}; {out} was not written") from error
    return 0


def _task(options: argparse.Namespace):
    from sim_mjx import engines
    from sim_mjx.perturb import Perturbation
    from sim_mjx.protocol import Protocol
    from sim_mjx.task import Task

    protocol = Protocol.resolve(options.protocol)
    if options.up is not None:
        protocol = dataclasses.replace(protocol, up=options.up)
    perturbation = None
    if options.perturb is not None:
        perturbation = Perturbation(options.perturb, options.starts, options.seed)
    engine = engines.resolve(options.engine, options.mjx_step)
    return Task(protocol, engine, options.adjudicate, perturbation, options.prepare)


def _run(work, task, out: pathlib.Path, options: argparse.Namespace, shard) -> bool:
    """Does the work of this run and says what came out; returns whether the table is complete."""
    from sim_mjx import job, plan

    logging.getLogger("trimesh").setLevel(logging.ERROR)  # it tells of every texture
    console, clock = Console(stderr=True), job.Clock()
    done = work.finished(out)
    todo = [] if done else work.missing(out, shard or (0, 1))
    count = sum(len(work.paths(block)) for block in todo)
    kept = len(work.files) - sum(len(work.paths(b)) for b in ([] if done else work.missing(out)))
    if done:
        console.print(f"{out} is complete already; --overwrite labels its files again")
    elif out.exists():
        console.print(f"{out} stays as it is until the new table is complete")
    if kept and not done:
        console.print(f"going on: {kept} of {len(work.files)} files are labelled already")
    try:
        with Monitor(console, count) as monitor:
            complete = job.run(
                work,
                task,
                out,
                shard=shard,
                workers=options.workers,
                cache=None if options.cache is None else pathlib.Path(options.cache),
                strict=options.strict,
                progress=monitor,
                clock=clock,
            )
    except KeyboardInterrupt:
        console.print(f"finished rows are kept in {plan.folder(out)}; the same command goes on")
        raise
    rows = work.rows(out, list(COLUMNS)).to_pydict()
    _name_invalid(rows)
    console.print(summary(rows))
    if count:
        console.print(
            f"{count} files: {clock.simulating:.1f} s in the engine, of which "
            f"{clock.compiling:.1f} s compiling; {clock.waiting:.1f} s waiting for bodies"
        )
    total, named = len(rows["path"]), f"protocol {options.protocol} ({task.protocol.hash()})"
    if not complete:
        console.print(
            f"{total} of {len(work.files)} rows in {plan.folder(out)}, {named}; "
            f"{out} appears with the last shard"
        )
        return False
    console.print(f"{total} rows in {out}, {named}")
    if rows["status"].count("invalid") == total:
        raise UsageError(f"label: none of {total} files could be labelled; reasons in {out}")
    return True


def _name_invalid(rows: dict[str, list]) -> None:
    invalid = [i for i, status in enumerate(rows["status"]) if status == "invalid"]
    for i in invalid[:NAMED_FILES]:
        _log.warning("%s: invalid: %s", rows["path"][i], rows["reason"][i])
    if len(invalid) > NAMED_FILES:
        _log.warning("and %d more invalid files", len(invalid) - NAMED_FILES)
