"""The tables of `dso evaluate` on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from dso_jax.evaluation.result import Result

# Name -> label, unit, factor, digits after the point.
_ROWS = {
    "output": ("output", "%", 100, 1),
    "stable": ("stable", "%", 100, 1),
    "stable_of_all": ("stable, of all", "%", 100, 1),
    "moving": ("still moving", "%", 100, 1),
    "tilt_deg": ("tilt, mean", "deg", 1, 2),
    "tilt_deg_median": ("tilt, median", "deg", 1, 3),
    "rotation_deg": ("rotation, mean", "deg", 1, 2),
    "margin_deg": ("margin", "deg", 1, 2),
    "margin_mm": ("margin of 100", "mm", 1, 2),
    "cd": ("Chamfer distance", "", 1, 4),
    "f_score": ("F-score", "%", 100, 2),
    "cd_fine": ("Chamfer, fine", "", 1, 4),
    "f_score_fine": ("F-score, fine", "%", 100, 2),
    "iou": ("IoU", "", 1, 3),
    "several_parts": ("several parts", "%", 100, 1),
    "watertight": ("watertight", "%", 100, 1),
}
_SURVIVAL = "survival_"
# Of the tables with a row for each of many things; only one has room for its interval.
_SHORT = ("output", "stable", "tilt_deg", "margin_deg", "cd", "f_score")
_WITH_INTERVAL = "stable"


def tables(result: Result) -> Group:
    """All that fits a terminal; the rest is in the report."""
    return Group(*_all(result))


def _all(result: Result) -> Iterator[Table]:
    summary = result.summary
    sides = {"": summary["all"]}
    if "before" in summary:
        sides = {"before": summary["before"], "after": summary["all"], "change": summary["change"]}
    yield _main(sides, len(result))
    if summary.get("categories"):
        yield _short("category", summary["categories"])
    if "baselines" in summary:
        yield _short("baseline", summary["baselines"])
    if len(summary.get("checkpoints", ())) > 2:  # the base and one are before and after
        yield _short("checkpoint", summary["checkpoints"])
    if "engines" in summary:
        yield _engines(summary["engines"])


def _main(sides: Mapping[str, Mapping[str, Any]], count: int) -> Table:
    table = Table(title=f"{count} meshes, 95 % intervals over objects", title_justify="left")
    table.add_column("")
    for side in sides:
        table.add_column(side, justify="right")
    for name, (label, unit, factor, digits) in _described(sides).items():
        cells = [_cell(side.get(name), factor, digits) for side in sides.values()]
        if any(cells):
            table.add_row(f"{label}, {unit}" if unit else label, *cells)
    return table


def _described(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple]:
    names = dict.fromkeys(name for side in sides.values() for name in side)
    angles = [name for name in names if name.startswith(_SURVIVAL)]
    survival = {
        name: (f"survival at {name.removeprefix(_SURVIVAL)} rad", "%", 100, 1) for name in angles
    }
    return {**_ROWS, **survival}


def _short(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title_justify="left")
    names = [name for name in _SHORT if any(_known(row.get(name)) for row in rows.values())]
    table.add_column(title)
    for name in names:
        label, unit, *_ = _ROWS[name]
        table.add_column(f"{label}, {unit}" if unit else label, justify="right")
    for row_name, row in rows.items():
        cells = [_cell(row.get(n), *_ROWS[n][2:], interval=n == _WITH_INTERVAL) for n in names]
        table.add_row(row_name, *cells)
    return table


def _engines(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title_justify="left")
    heads = ("engine", "both stand", "both fall", "falls there", "stands there", "agree, %")
    for head in heads:
        table.add_column(head, justify="left" if head == "engine" else "right")
    for name, row in rows.items():
        counts = [row[k] for k in ("stand_stand", "fall_fall", "stand_fall", "fall_stand")]
        table.add_row(name, *map(str, counts), _cell(row["agreement"], 100, 2))
    return table


def _known(found: Mapping[str, float] | None) -> bool:
    return found is not None and math.isfinite(found["value"])


def _cell(
    found: Mapping[str, float] | None, factor: float, digits: int, *, interval: bool = True
) -> str:
    if found is None or not math.isfinite(found["value"]):
        return ""
    value, low, high = (factor * found[end] for end in ("value", "low", "high"))
    if not interval:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
