"""`dso evaluate`: the paper's tables for meshes from any generator, and for our own checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import logging
import pathlib
import shlex
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dso_jax.cli import evaluate_arguments, evaluate_runs
from dso_jax.cli.progress import Stages
from dso_jax.errors import UsageError

if TYPE_CHECKING:
    from dso_jax.evaluation.result import Result
    from dso_jax.evaluation.run import Settings

WIDTH = 110  # of the tables in a log

_log = logging.getLogger(__name__)


def main(args: list[str]) -> int:
    """Runs the command; see `--help`.

    Raises:
        UsageError: an argument or the input cannot be used, and nothing was written.
    """
    options = evaluate_arguments.parser().parse_args(args)
    started = datetime.datetime.now().astimezone()
    out, subject = evaluate_arguments.folder(options.out), evaluate_runs.find(options.paths)
    evaluate_runs.refuse_options(options, subject)

    # Simulation libraries take seconds to import; `--help` and typing mistakes need not wait.
    from dso_jax.cli import evaluate_tables
    from dso_jax.evaluation import parts
    from dso_jax.evaluation.files import Bench
    from dso_jax.report import evaluation
    from sim_mjx.engines import EngineError
    from sim_mjx.perturb import PerturbError
    from sim_mjx.prepare import WorkerError
    from sim_mjx.protocol import ProtocolError

    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = WIDTH
    logging.getLogger("trimesh").setLevel(logging.ERROR)  # it tells of every texture
    stages = Stages(console)
    bench = Bench(parts.Parts(out / "parts"), options.workers, stages)
    try:
        settings = _settings(options)
        record = _record(args, started, settings)
        if subject is None:
            result = _meshes(options, out, settings, bench, record)
        else:
            result = _run(subject, options, out, settings, bench, record)
    except (EngineError, PerturbError, ProtocolError, WorkerError) as error:
        raise UsageError(f"evaluate: {error}") from error
    except KeyboardInterrupt:
        console.print(f"finished blocks are kept in {out / 'parts'}; the same command goes on")
        raise
    _refuse_invalid(result, options.strict)
    record["seconds"] = stages.seconds
    result.save(out)
    with stages("report", evaluation.pictures(result)) as tell:
        page = out / evaluation.NAME
        evaluation.write(page, result, workers=options.workers or None, progress=tell)
    bench.parts.discard()
    console.print(evaluate_tables.tables(result))
    if "best" in result.summary:
        print(f"best checkpoint: {result.summary['best']['name']}")
    print(result.summary["verdict"]["text"])
    print(f"{page}: tables, curves, every object; {len(result)} rows in {out / 'results.csv'}")
    return 0


def _meshes(options, out: pathlib.Path, settings: Settings, bench, record) -> Result:
    from dso_jax.evaluation import inputs, run

    items = inputs.collect(
        options.paths, truth=options.truth, before=options.before, categories=options.categories
    )
    alone = len({(item.object, item.view) for item in items}) == len(items)
    if alone and "best-of-n" in settings.baselines:
        raise UsageError(
            "evaluate: --baselines best-of-n: every picture has one sample; expected several, "
            "named as chair-003_000.glb, chair-003_001.glb"
        )
    record["inputs"] = {
        "meshes": len(items),
        "objects": len({item.object for item in items}),
        "with_truth": sum(item.truth is not None for item in items),
        "with_before": sum(item.before is not None for item in items),
        "folder": str(pathlib.Path.cwd()),
    }
    out.mkdir(exist_ok=True)
    return run.evaluate(items, settings, bench, record)


def _run(subject: pathlib.Path, options, out: pathlib.Path, settings, bench, record) -> Result:
    from dso_jax.evaluation import sweep

    asked, models = evaluate_runs.prepare(subject, options, out / "samples")
    record["inputs"] = {
        "run": str(subject),
        "base": {"name": asked.base.name, "sha256": asked.base.sha256},
        "models": [model.name for model in models],
        "meshes": len(asked.prompts) * asked.count,
        "objects": len(set(asked.prompts.objects.tolist())),
        "samples": asked.count,
        "folder": str(pathlib.Path.cwd()),
    }
    out.mkdir(exist_ok=True)
    return sweep.evaluate(asked, models, settings, bench, record)


def _settings(options: argparse.Namespace) -> Settings:
    from dso_jax.evaluation import engines
    from dso_jax.evaluation.geometry import PAPER
    from dso_jax.evaluation.run import Settings
    from sim_mjx.perturb import Perturbation
    from sim_mjx.protocol import Protocol

    protocol = Protocol.resolve(options.protocol)
    if options.up != "auto":
        protocol = dataclasses.replace(protocol, up=options.up)
    first, *others = options.engines
    task = engines.task(first, protocol)
    for name in others:  # an engine that is not installed is said before any work
        engines.task(name, protocol)
    starts = tuple(Perturbation(one, options.starts, options.seed) for one in options.perturb)
    return Settings(
        drops=dataclasses.replace(task, perturbations=starts),
        others=tuple(others),
        geometry=dataclasses.replace(
            PAPER, seed=options.seed, generated_up=options.up, truth_up=options.truth_up
        ),
        fine=options.geometry == "fine",
        shapes=options.shapes,
        baselines=tuple(options.baselines),
        up=options.up,
    )


def _refuse_invalid(result: Result, strict: bool) -> None:
    invalid = [i for i, status in enumerate(result.columns["status"]) if status == "invalid"]
    reasons = ", ".join(result.summary["reasons"])
    if len(invalid) == len(result):
        raise UsageError(f"evaluate: none of {len(result)} meshes could be simulated ({reasons})")
    if invalid and strict:
        first = invalid[0]
        path, reason = result.columns["path"][first], result.columns["reason"][first]
        raise UsageError(f"evaluate: --strict: {path} cannot be simulated ({reason})")
    for i in invalid[:20]:
        path, reason = result.columns["path"][i], result.columns["reason"][i]
        _log.warning("%s: invalid: %s", path, reason)
    if len(invalid) > 20:
        _log.warning("and %d more invalid meshes", len(invalid) - 20)


def _record(args: list[str], started, settings: Settings) -> dict[str, Any]:
    from dso_jax.demo import versions

    task = settings.drops
    return {
        "command": shlex.join(["dso", "evaluate", *args]),
        "started": started.isoformat(timespec="seconds"),
        "device": task.engine.device,
        "versions": versions(),
        "engine": task.engine.record(),
        "protocol": {"hash": task.protocol.hash(), **task.protocol.to_dict()},
        "perturbations": [dataclasses.asdict(one) for one in task.perturbations],
        "geometry": dataclasses.asdict(settings.geometry),
    }
