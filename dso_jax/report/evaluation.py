"""The report of an evaluation: one HTML file with everything in it but the meshes.

It works offline, in light and dark, from the keyboard, and without scripts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np

from dso_jax.atomic import write_text
from dso_jax.evaluation.labels import LABELS
from dso_jax.evaluation.result import BEFORE, CSV_NAME, JSON_NAME, Result
from dso_jax.report import evaluation_tables as tables
from dso_jax.report import html
from dso_jax.report.evaluation_drawings import Drawing, Task, draw_all
from dso_jax.report.evaluation_gallery import change, gallery
from dso_jax.report.evaluation_tables import MISSING
from sim_mjx.protocol import Protocol

NAME = "report.html"
LIMIT = 1000  # meshes in the gallery: a page of 20 MB


def write(
    path: Path,
    result: Result,
    *,
    workers: int | None = None,
    limit: int = LIMIT,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Draws the meshes and writes the page.

    Args:
        path: of the page; `results.json` and `results.csv` are linked as lying beside it.
        result: the evaluation. Its meshes are read from `columns["path"]`.
        workers: processes that draw; None takes all cores.
        limit: meshes in the gallery, those that changed most for the worse.
        progress: told of each mesh that is drawn; `pictures` says how many there will be.
    """
    rows = np.argsort(-change(result), kind="stable")[:limit]
    tasks = [*_tasks(result, rows, ""), *_tasks(result, rows, BEFORE)]
    drawn = draw_all([task for _, task in tasks], workers or os.cpu_count() or 1, progress)
    sides: dict[str, dict[int, Drawing | None]] = {"": {}, BEFORE: {}}
    for (where, _), drawing in zip(tasks, drawn, strict=True):
        prefix, row = where
        sides[prefix][row] = drawing
    write_text(path, render(result, rows.tolist(), sides[""], sides[BEFORE], path.parent))


def pictures(result: Result, limit: int = LIMIT) -> int:
    """How many meshes `write` will draw."""
    return min(len(result), limit) * (1 + (f"{BEFORE}path" in result.columns))


def render(
    result: Result,
    rows: list[int],
    after: dict[int, Drawing | None],
    before: dict[int, Drawing | None],
    folder: Path,
) -> str:
    """The page; see `evaluation_gallery.gallery` for the arguments."""
    summary = result.summary
    categories, baselines = summary.get("categories"), summary.get("baselines")
    sections = [
        _headline(result),
        "<h2>What was measured</h2><p>Means over meshes; intervals resample objects.</p>"
        + tables.measures(result),
        tables.guards(summary.get("verdict", {})),
        tables.checkpoints(result),
        tables.survival(result),
        f"<h2>Categories</h2>{tables.rows('category', categories)}" if categories else "",
        f"<h2>Baselines</h2>{tables.rows('baseline', baselines)}" if baselines else "",
        tables.engines(result),
        tables.reasons(result),
        gallery(result, rows, after, before, folder),
        _origin(result),
    ]
    return html.document(
        "DSO-JAX: evaluation", "".join(sections), ["evaluation.css"], ["evaluation.js"]
    )


def _headline(result: Result) -> str:
    summary = result.summary
    after, lost = summary["all"]["stable"], int((result.columns["status"] == "invalid").sum())
    text = f"{_percent(after['value'])} % of {len(result) - lost} meshes stand"
    change = summary.get("change", {}).get("stable")
    if change:
        low, high = _percent(change["low"], "+"), _percent(change["high"], "+")
        text += (
            f"; before, {_percent(summary['before']['stable']['value'])} %. That is "
            f"{_percent(change['value'], '+')} points (95 % interval {low} to {high})"
        )
    else:
        text += f" (95 % interval {_percent(after['low'])} to {_percent(after['high'])})"
    text += f"; {lost} more could not be simulated" if lost else ""
    verdict = summary.get("verdict", {})
    style = {True: "good", False: "bad", None: ""}[verdict.get("ok")]
    guards = f'<p class="{style}">{escape(verdict["text"])}</p>' if verdict.get("text") else ""
    return (
        '<a class="skip" href="#gallery">To the gallery</a><h1>DSO-JAX evaluation</h1>'
        f'<div class="verdict">{escape(text)}.</div>{guards}'
    )


def _percent(value: float | None, sign: str = "") -> str:
    return LABELS["stable"].number(value, sign) or MISSING


def _origin(result: Result) -> str:
    record = result.record
    facts = {name: _fact(value) for name, value in record.items() if value not in (None, "", {})}
    links = (
        f'<a href="{CSV_NAME}">{CSV_NAME}</a> (one line a mesh), '
        f'<a href="{JSON_NAME}">{JSON_NAME}</a> (all tables)'
    )
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{text}</dd>" for name, text in facts.items())
    return f'<h2>What made this</h2><dl class="card">{listed}<dt>numbers</dt><dd>{links}</dd></dl>'


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(key))} {_fact(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "; ".join(_fact(one) for one in value)
    return escape(f"{value:g}" if isinstance(value, float) else str(value))


def _tasks(
    result: Result, rows: np.ndarray, prefix: str
) -> list[tuple[tuple[str, int], Task | None]]:
    """What to draw of the meshes after or before; None for those that have no pose."""
    columns = result.columns
    poses = result.before_poses if prefix else result.poses
    if poses is None:
        return []
    protocol = Protocol.from_dict(
        {key: value for key, value in result.record["protocol"].items() if key != "hash"}
    )
    found: list[tuple[tuple[str, int], Task | None]] = []
    for row in rows.tolist():
        quaternion = poses[row, 3:]
        known = columns[f"{prefix}path"][row] and columns[f"{prefix}status"][row] != "invalid"
        task = None
        if known and np.isfinite(quaternion).all():
            stable = bool(columns[f"{prefix}stable"][row])
            task = Task(str(columns[f"{prefix}path"][row]), protocol, quaternion, stable)
        found.append(((prefix, row), task))
    return found
