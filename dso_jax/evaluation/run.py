"""One evaluation of mesh files: every stage, and the table of each.

Files before and after post-training go through the stages as one list, so that both are measured by
the same code in the same company, and a file that serves twice is measured once.

Legend: N meshes, U different files.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dso_jax.evaluation import alternatives, distances, engines, judge, summary
from dso_jax.evaluation.drops import Drops
from dso_jax.evaluation.files import Bench
from dso_jax.evaluation.geometry import PAPER, GeometryConfig, UpAxis
from dso_jax.evaluation.inputs import Item
from dso_jax.evaluation.parts import Columns
from dso_jax.evaluation.result import BEFORE, Result


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is done with the meshes.

    Attributes:
        drops: how they are dropped; makes the tables.
        others: names of engines to compare with.
        geometry: seed and axes of the comparison with true objects.
        fine: also compare on ten times the points.
        shapes: measure shapes, for the guards.
        baselines: of `alternatives.NAMES`.
        up: the files' up axis.
    """

    drops: Drops
    others: tuple[str, ...] = ()
    geometry: GeometryConfig = PAPER
    fine: bool = False
    shapes: bool = True
    baselines: tuple[str, ...] = ()
    up: UpAxis = "auto"


def evaluate(
    items: Sequence[Item],
    settings: Settings,
    bench: Bench,
    record: dict[str, Any],
) -> Result:
    """All stages.

    Args:
        items: the meshes, see `inputs.collect`.
        settings: what is done.
        bench: where.
        record: of the result.
    """
    after = [item.path for item in items]
    before = [item.before for item in items]
    truths = [item.truth for item in items]
    unique = list(dict.fromkeys([*after, *(path for path in before if path is not None)]))
    found = bench.drop(unique, settings.drops)
    if settings.shapes:
        found |= bench.shapes(unique, settings.up)
    place = {path: row for row, path in enumerate(unique)}
    columns = described(items) | _taken(found, [place[path] for path in after])
    poses = columns.pop("pose")
    if any(truths):
        columns |= distances.columns(after, truths, settings.geometry, bench, fine=settings.fine)
    before_poses = None
    if any(before):
        rows = [-1 if path is None else place[path] for path in before]
        earlier = _taken(found, rows)
        before_poses = earlier.pop("pose")
        if any(truths):
            earlier |= distances.columns(
                before, truths, settings.geometry, bench, "geometry before", fine=settings.fine
            )
        earlier["path"] = np.array(["" if path is None else str(path) for path in before], object)
        columns |= {f"{BEFORE}{name}": values for name, values in earlier.items()}
    tables, curves = tabulate(columns, settings)
    if settings.baselines:
        tables["baselines"] = alternatives.tables(
            settings.baselines, columns, truths, settings.drops, settings.geometry, bench
        )
    tilts = {}
    if settings.others:
        tables["engines"], tilts = engines.tables(
            settings.others,
            settings.drops.protocol,
            columns,
            lambda name, task: bench.drop(after, task, f"drop in {name}"),
        )
    return Result(record, columns, poses, tables, curves, tilts, before_poses)


def described(items: Sequence[Item]) -> Columns:
    """What is known of the meshes before anything is measured."""
    return {
        "path": np.array([str(item.path) for item in items], object),
        "object": np.array([item.object for item in items], object),
        "view": np.array([item.view for item in items], object),
        "sample": np.array([item.sample for item in items], np.int64),
        "category": np.array([item.category for item in items], object),
    }


def tabulate(columns: Columns, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables and curves of columns; adds the column `guards`."""
    tables: dict[str, Any] = {"all": summary.table(columns)}
    invalid = columns["status"] == "invalid"
    tables["reasons"] = dict(collections.Counter(columns["reason"][invalid]).most_common())
    curves: dict[str, Any] = {}
    if settings.drops.perturbations:
        curves["survival"] = summary.survival_curve(tables["all"])
    if f"{BEFORE}path" in columns:
        earlier = summary.before_columns(columns)
        tables["before"] = summary.table(earlier, columns[f"{BEFORE}path"] != "")
        tables["change"] = summary.change(columns)
        if settings.drops.perturbations:
            curves["survival_before"] = summary.survival_curve(tables["before"])
    tables["categories"] = summary.categories(columns)
    tables["verdict"], columns["guards"] = judge.judge(columns)
    return tables, curves


def _taken(found: Columns, rows: Sequence[int]) -> Columns:
    """Rows of columns; -1 is a row without values."""
    index = np.asarray(rows, int)
    columns = {}
    for name, values in found.items():
        chosen = values[index]
        if values.dtype.kind == "f":
            chosen[index < 0] = np.nan
        elif values.dtype.kind == "b":
            chosen[index < 0] = False
        else:
            chosen = chosen.astype(object)
            chosen[index < 0] = "invalid" if name == "status" else ""
        columns[name] = chosen
    return columns
