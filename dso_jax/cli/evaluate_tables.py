"""The tables of `dso evaluate` on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from rich.console import Group
from rich.table import Table

from dso_jax.evaluation.labels import LABELS, Label, labels
from dso_jax.evaluation.result import Result

# Only in the report: there is no room for them here.
_NOT_HERE = ("rotation_deg_median", "plate", "footprint", "volume", "height")
# Of the tables with a row for each of many things; only one has room for its interval.
_SHORT = ("output", "stable", "tilt_deg", "margin_deg", "cd", "f_score")
_WITH_INTERVAL = "stable"
_AGREEMENT = Label("agree", "%", 100, 2)


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
    for name, label in labels(name for side in sides.values() for name in side).items():
        cells = [_cell(side.get(name), label) for side in sides.values()]
        if any(cells) and name not in _NOT_HERE:
            table.add_row(label.title, *cells)
    return table


def _short(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title_justify="left")
    names = [name for name in _SHORT if any(_known(row.get(name)) for row in rows.values())]
    table.add_column(title)
    for name in names:
        table.add_column(LABELS[name].title, justify="right")
    for row_name, row in rows.items():
        cells = [_cell(row.get(n), LABELS[n], interval=n == _WITH_INTERVAL) for n in names]
        table.add_row(row_name, *cells)
    return table


def _engines(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title_justify="left")
    heads = ("engine", "both stand", "both fall", "falls there", "stands there", _AGREEMENT.title)
    for head in heads:
        table.add_column(head, justify="left" if head == "engine" else "right")
    for name, row in rows.items():
        counts = [row[k] for k in ("stand_stand", "fall_fall", "stand_fall", "fall_stand")]
        table.add_row(name, *map(str, counts), _cell(row["agreement"], _AGREEMENT))
    return table


def _known(found: Mapping[str, float] | None) -> TypeGuard[Mapping[str, float]]:
    return found is not None and math.isfinite(found["value"])


def _cell(found: Mapping[str, float] | None, label: Label, *, interval: bool = True) -> str:
    if not _known(found):
        return ""
    value, low, high = (label.number(found[end]) for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if interval else value
