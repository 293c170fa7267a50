"""The numbers of an evaluation as HTML: what was measured, by category, engine and baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from dso_jax.evaluation.labels import LABELS, Label, labels
from dso_jax.evaluation.result import Result
from dso_jax.report import charts, html

Table = Mapping[str, Mapping[str, Any]]
# Columns of the tables with a row for each of many things.
SHORT = ("output", "stable", "tilt_deg", "margin_deg", "cd", "f_score", "iou")
CHANGE, MISSING = "change", "–"
AGREE = Label("agree", "%", 100, 2)


def measures(result: Result) -> str:
    """Every measure, before and after where there are both."""
    summary = result.summary
    sides: dict[str, Table] = {"": summary["all"]}
    if summary.get("before"):
        sides = {"before": summary["before"], "after": summary["all"]}
        sides |= {CHANGE: summary["change"]} if summary.get("change") else {}
    found = labels(name for side in sides.values() for name in side)
    body = [
        [
            escape(label.title),
            *(
                _cell(side.get(name), label, "+" if title == CHANGE else "")
                for title, side in sides.items()
            ),
        ]
        for name, label in found.items()
    ]
    head = ["measure", *(title or "value and 95 % interval" for title in sides)]
    return html.scroll(html.table(head, body), "measures")


def rows(title: str, tables: Mapping[str, Table]) -> str:
    """A table with a row for each category, baseline or checkpoint."""
    used = {name for table in tables.values() for name in table}
    names = [name for name in SHORT if name in used]
    counted = "meshes" in used
    body = [
        [
            escape(row),
            *([f"{table['meshes']['value']}"] if counted and "meshes" in table else []),
            *(_cell(table.get(name), LABELS[name], "", name == "stable") for name in names),
        ]
        for row, table in tables.items()
    ]
    head = [title, *(["meshes"] if counted else []), *(LABELS[name].title for name in names)]
    return html.scroll(html.table(head, body), title)


def reasons(result: Result) -> str:
    """Why meshes could not be simulated, and how many."""
    found = result.summary.get("reasons")
    if not found:
        return ""
    body = [[f"<code>{escape(reason)}</code>", str(count)] for reason, count in found.items()]
    return (
        "<h2>What could not be simulated</h2><p>These meshes have no verdict; they are in the "
        "gallery and in results.csv.</p>" + html.scroll(html.table(["reason", "meshes"], body), "")
    )


def guards(verdict: Mapping[str, Any]) -> str:
    """What was looked for that would make stability worthless, and how often it was found."""
    if not verdict.get("guards"):
        return ""
    limit = verdict["tolerated"]
    body = [
        [
            escape(guard["label"]),
            f'<span class="{"bad" if guard["share"] > limit else "good"}">'
            f"{100 * guard['share']:.1f} %</span>",
            f'<span class="why">{escape(guard["why"])}</span>',
        ]
        for guard in verdict["guards"].values()
    ]
    table = html.table(["guard", "fires on", "when, and why there"], body)
    return (
        "<h2>Guards</h2><p>Stability must not be bought with shape: "
        f"each mesh is compared with the one before, and a guard may fire on {100 * limit:.0f} % "
        "of them.</p>" + html.scroll(table, "guards")
    )


def engines(result: Result) -> str:
    """Confusion matrices and tilts of the same meshes in other engines."""
    found = result.summary.get("engines")
    if not found:
        return ""
    body = [
        [
            escape(name),
            *(str(one[key]) for key in ("stand_stand", "fall_fall", "stand_fall", "fall_stand")),
            _cell(one["agreement"], AGREE),
        ]
        for name, one in found.items()
    ]
    head = ["engine", "both stand", "both fall", "falls there", "stands there", AGREE.title]
    drawn = [_scatter(result, name, tilts) for name, tilts in result.engines.items()]
    return (
        "<h2>Other engines</h2><p>The same meshes, dropped again. Dots are meshes: tilt here and "
        "there; coloured where the verdicts differ.</p>"
        + html.scroll(html.table(head, body), "engines")
        + _columns(drawn)
    )


def _scatter(result: Result, name: str, tilts: np.ndarray) -> str:
    here, limit = result.columns["tilt_deg"], _threshold(result)
    known = np.isfinite(here) & np.isfinite(tilts)
    pairs = zip(here[known].tolist(), tilts[known].tolist(), strict=True)
    # Dots that would lie on each other are one.
    points = {(round(x, 1), round(y, 1), 3 if (x < limit) != (y < limit) else 0) for x, y in pairs}
    if not points:
        return ""
    ordered = sorted(points, key=lambda point: point[2])
    return charts.scatter_chart(f"Tilt in {name}, °", ordered, "tilt here, °", "tilt there")


def _threshold(result: Result) -> float:
    return float(result.record["protocol"]["threshold_deg"])


def survival(result: Result) -> str:
    """How many stand when they are set down crooked, against by how much."""
    paired = "survival_before" in result.curves
    named = {"survival_before": ("before", 0), "survival": ("after" if paired else "", 2)}
    series = []
    for key, (name, colour) in named.items():
        if key in result.curves:
            curve = result.curves[key]
            ends = [_scaled(curve[end], 100) for end in ("value", "low", "high")]
            series.append(charts.Series(name, colour, curve["theta"], *ends))
    chart = charts.line_chart("Meshes that end upright, %", series, "largest angle of a start, rad")
    if not chart:
        return ""
    return (
        "<h2>Set down crooked</h2><p>Each mesh is put down turned by a random angle up to the one "
        "below it; bands are 95 % intervals over objects.</p>" + _columns([chart])
    )


def checkpoints(result: Result) -> str:
    """Every checkpoint's table, which one is best, and curves against training steps."""
    table, best = result.summary.get("checkpoints"), result.summary.get("best")
    if not table:
        return ""
    text = ""
    if best:
        text = f"<p>Best: <b>{escape(str(best['name']))}</b>; the rest of this page is about it."
        if best.get("suspect"):
            suspects = ", ".join(escape(str(name)) for name in best["suspect"])
            text += f" Guards suspect {suspects}."
        text += "</p>"
    curve, drawn = result.curves.get("checkpoints", {}), []
    for name, label in labels(curve).items():
        ends = [
            _scaled(curve.get(f"{name}{end}", ()), label.factor) for end in ("", "_low", "_high")
        ]
        steps = _scaled(curve["step"], 1)
        drawn.append(charts.line_chart(label.title, [charts.Series("", 2, steps, *ends)]))
    return f"<h2>Checkpoints</h2>{text}{rows('checkpoint', table)}{_columns(drawn)}"


def _columns(drawn: Sequence[str]) -> str:
    cards = "".join(f'<div class="card">{chart}</div>' for chart in drawn if chart)
    return f'<div class="columns">{cards}</div>' if cards else ""


def _scaled(values: Sequence[float | None], factor: float) -> list[float]:
    return [math.nan if value is None else factor * value for value in values]


def _cell(
    found: Mapping[str, Any] | None, label: Label, sign: str = "", interval: bool = True
) -> str:
    """A value with its interval; a change whose interval excludes 0 is strong."""
    value = label.number(found["value"], sign) if found else ""
    if not found or not value:
        return MISSING
    low, high = label.number(found.get("low"), sign), label.number(found.get("high"), sign)
    if not interval or not low or not high:
        return value
    clear = not sign or found["low"] > 0 or found["high"] < 0
    value = f"<b>{value}</b>" if clear else value
    return f"{value} <small>{low} to {high}</small>"
