"""Checkpoints against the base on the same prompts and noise: the paper's curves over training."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dso_jax.evaluation import alternatives, distances, engines, judge, run, samples, summary
from dso_jax.evaluation.files import Bench
from dso_jax.evaluation.parts import Columns
from dso_jax.evaluation.result import BEFORE, Result
from dso_jax.evaluation.run import Settings
from dso_jax.evaluation.samples import OTHER, Model
from dso_jax.generation.prompts import Prompts
from dso_jax.pretrained import Base

# Of a curve: what is drawn against the steps.
CURVES = ("stable", "cd", "f_score", "iou", "tilt_deg")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is sampled.

    Attributes:
        base: the generator, whose own samples are those before post-training.
        prompts: held-out ones.
        count: samples of each.
        folder: of meshes, one folder a model.
    """

    base: Base
    prompts: Prompts
    count: int
    folder: pathlib.Path

    def origin(self) -> dict[str, Any]:
        """What decides the samples, beside a model's weights."""
        return {
            "base": self.base.sha256,
            "sampler": dataclasses.asdict(self.base.sampler),
            "objects": self.prompts.objects.tolist(),
            "views": self.prompts.views.tolist(),
            "count": self.count,
        }


def evaluate(
    sweep: Sweep, models: Sequence[Model], settings: Settings, bench: Bench, record: dict[str, Any]
) -> Result:
    """Every model's table, and the best one's evaluation in full, against the base.

    The best is the one with the most stable samples among those that no guard suspects, or among
    all if every one is suspect.
    """
    base = Model("base", sweep.base.flow_params, None, {"base": sweep.base.sha256}, 0)
    truths = samples.write_truths(sweep.prompts, sweep.folder / "truth")
    before = _measured(base, sweep, truths, settings, bench)
    found = [_measured(model, sweep, truths, settings, bench) for model in models]
    paired = [_paired(columns, before) for columns in found]
    tables = [summary.table(columns) for columns in paired]
    verdicts = [judge.judge(columns)[0] for columns in paired]
    sound = [i for i, verdict in enumerate(verdicts) if verdict["ok"] is not False]
    best = max(sound or range(len(models)), key=lambda i: _merit(tables[i]))
    columns, chosen = paired[best], models[best]
    _log.info("best: %s", chosen.name)
    summaries, curves = run.tabulate(columns, settings)
    summaries["best"] = {
        "name": chosen.name,
        "step": chosen.step,
        "suspect": [m.name for m, v in zip(models, verdicts, strict=True) if v["ok"] is False],
    }
    summaries["checkpoints"] = {"base": summary.table(before)} | {
        model.name: table for model, table in zip(models, tables, strict=True)
    }
    if len(models) > 1:
        curves["checkpoints"] = _curve([0, *(m.step for m in models)],
                                       list(summaries["checkpoints"].values()))  # fmt: skip
    each = [truth for truth in truths for _ in range(sweep.count)]
    if settings.baselines:
        summaries["baselines"] = alternatives.tables(
            settings.baselines, columns, each, settings.drops, settings.geometry, bench
        )
    tilts = {}
    if settings.others:
        summaries["engines"], tilts = engines.tables(
            settings.others,
            settings.drops.protocol,
            columns,
            lambda name, _: {c: columns[OTHER.format(name, c)] for c in samples.OTHER_COLUMNS},
        )
    poses, before_poses = columns.pop("pose"), columns.pop(f"{BEFORE}pose")
    inner = [OTHER.format(name, c) for name in settings.others for c in samples.OTHER_COLUMNS]
    inner += [f"{BEFORE}{name}" for name in inner]
    kept = {name: values for name, values in columns.items() if name not in inner}
    return Result(record, kept, poses, summaries, curves, tilts, before_poses)


def _merit(table: summary.Table) -> tuple[float, float]:
    """What makes a checkpoint better: more that stands, then nearer to the true objects."""
    distance = table["cd"]["value"] if "cd" in table else 0.0
    return table["stable"]["value"], -distance


def _measured(model: Model, sweep: Sweep, truths, settings: Settings, bench: Bench) -> Columns:
    """Everything about one model's samples."""
    protocol, folder = settings.drops.protocol, sweep.folder / model.name
    items = samples.items(sweep.prompts, sweep.count, folder, truths)
    paths = [item.path for item in items]
    others = {name: engines.task(name, protocol) for name in settings.others}
    origin = {
        "work": "sample",
        **settings.drops.origin(),
        **sweep.origin(),
        "others": {name: task.origin() for name, task in others.items()},
        "model": model.origin,
    }
    with bench.report(f"sample {model.name}", len(items)) as tell:
        found = bench.parts.get(
            origin,
            lambda: samples.measure(
                model, sweep.base, sweep.prompts, sweep.count, settings.drops, others, folder, tell
            ),
        )
    columns = run.described(items) | {name: _text(values) for name, values in found.items()}
    if settings.shapes:
        columns |= bench.shapes(paths, "auto", f"shapes of {model.name}")
    if any(truths):
        columns |= distances.columns(
            paths, [item.truth for item in items], settings.geometry, bench,
            f"geometry of {model.name}", fine=settings.fine,
        )  # fmt: skip
    return columns


def _text(values: np.ndarray) -> np.ndarray:
    return values.astype(object) if values.dtype.kind == "U" else values


def _paired(columns: Columns, before: Columns) -> Columns:
    """A model's columns beside the base's."""
    same = ("object", "view", "sample", "category")
    earlier = {f"{BEFORE}{name}": v for name, v in before.items() if name not in same}
    return columns | earlier


def _curve(steps: Sequence[int | None], tables: Sequence[summary.Table]) -> dict[str, list]:
    curve: dict[str, list] = {"step": list(steps)}
    for name in CURVES:
        if name in tables[0]:
            curve[name] = [table[name]["value"] for table in tables]
            curve[f"{name}_low"] = [table[name]["low"] for table in tables]
            curve[f"{name}_high"] = [table[name]["high"] for table in tables]
    return curve
