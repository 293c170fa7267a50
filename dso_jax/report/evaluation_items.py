"""One mesh of an evaluation as HTML: its pictures and numbers, before and after."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from dso_jax.evaluation.labels import LABELS
from dso_jax.evaluation.result import BEFORE, Result
from dso_jax.report import html
from dso_jax.report.evaluation_drawings import Drawing
from dso_jax.report.footing import footing_svg

# What became of a mesh: word, style. Without a comparison there are only the last three.
KINDS = {
    "broken": ("stood before, falls now", "bad"),
    "fixed": ("fell before, stands now", "good"),
    "falls": ("falls", "bad"),
    "stands": ("stands", "good"),
    "invalid": ("invalid", "bad"),
}


def card(
    result: Result,
    row: int,
    kind: str,
    worse: float,
    after: Mapping[int, Drawing | None],
    before: Mapping[int, Drawing | None],
    folder: Path,
) -> str:
    """The card.

    Args:
        result: the evaluation.
        row: which mesh.
        kind: of `KINDS`.
        worse: how much worse it became.
        after, before: pictures by row; nothing is compared if `before` is empty.
        folder: where the page will lie.
    """
    columns = result.columns
    name = f"{columns['object'][row]}"
    view, sample = columns["view"][row], columns["sample"][row]
    detail = f"view {view}, sample {sample}" if str(view) else f"sample {sample}"
    word, style = KINDS[kind]
    fired = "".join(
        f' <span class="bad">guard: {escape(guard.replace("_", " "))}</span>'
        for guard in guards(result, row)
    )
    data = {
        "text": f"{columns['path'][row]} {name}".lower(),
        "kind": kind,
        "category": columns["category"][row],
        "guard": " ".join(guards(result, row)),
        "worst": f"{worse:.4g}",
        "tilt": _plain(columns["tilt_deg"][row]),
        "margin": _plain(columns["margin_deg"][row]),
        "cd": _plain(columns["cd"][row]) if "cd" in columns else "",
    }
    attributes = "".join(f' data-{key}="{escape(str(value))}"' for key, value in data.items())
    sides = [_side(result, row, "", after.get(row), name, folder)]
    if before:
        sides = [_side(result, row, BEFORE, before.get(row), name, folder), *sides]
    return (
        f'<article class="item"{attributes}><h3>{escape(name)} <small>{escape(detail)}</small> '
        f'<span class="{style}">{word}</span>{fired}</h3>{"".join(sides)}</article>'
    )


def _side(
    result: Result, row: int, prefix: str, drawing: Drawing | None, name: str, folder: Path
) -> str:
    columns = result.columns
    path = str(columns[f"{prefix}path"][row])
    if not path:
        return '<div class="side"><p class="gone">nothing to compare with</p></div>'
    invalid = columns[f"{prefix}status"][row] == "invalid"
    stable = bool(columns[f"{prefix}stable"][row])
    word = "invalid" if invalid else "stands" if stable else "falls"
    called = f"{name}, before" if prefix else name
    if drawing is None:
        why = columns[f"{prefix}reason"][row] if invalid else "the file cannot be read any more"
        tiles = f'<p class="gone">{escape(str(why))}</p>'
    else:
        tiles = (
            '<div class="tiles">'
            + html.image(drawing.start, f"{called}, at the start", kind="webp")
            + html.image(drawing.rest, f"{called}, at the end: {word}", kind="webp")
            + footing_svg(drawing.footing, drawing.outline, f"{called}, from above")
            + "</div>"
        )
    link = f'<a href="{escape(_link(path, folder))}">{escape(Path(path).name)}</a>'
    heading = f"<b>{'before' if prefix else 'after'}</b> " if f"{BEFORE}path" in columns else ""
    numbers = "" if invalid else _numbers(columns, prefix, row)
    moving = ", still moving" if bool(columns[f"{prefix}moving"][row]) else ""
    style = "good" if stable and not invalid else "bad"
    return (
        f'<div class="side">{tiles}<div class="facts">{heading}'
        f'<span class="{style}">{word}{moving}</span> {numbers}<br>{link}</div></div>'
    )


def _numbers(columns: Mapping[str, np.ndarray], prefix: str, row: int) -> str:
    value = {
        key: float(columns[f"{prefix}{key}"][row])
        for key in ("tilt_deg", "margin_deg", "margin_mm", "cd", "f_score")
        if f"{prefix}{key}" in columns
    }
    parts = [f"tilt {value['tilt_deg']:.1f}°"]
    parts.append(f"margin {value['margin_deg']:.1f}° ({value['margin_mm']:.1f} mm)")
    for key, word in (("cd", "CD"), ("f_score", "F")):
        text = LABELS[key].number(value.get(key))
        parts += [f"{word} {text}{' %' if LABELS[key].unit else ''}"] if text else []
    return " · ".join(parts)


def guards(result: Result, row: int) -> list[str]:
    """Names of the guards that fire on a mesh."""
    return str(result.columns["guards"][row]).split() if "guards" in result.columns else []


def _link(path: str, folder: Path) -> str:
    """A mesh's address from the page; a scheme in it stays what it is, a name."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def _plain(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else ""
