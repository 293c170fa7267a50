"""The gallery of an evaluation: a card for each mesh, worst change first, with filters.

Cards are plain HTML in their order and need no script; the script only hides and sorts them by what
stands in their `data-` attributes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dso_jax.evaluation.result import BEFORE, Result
from dso_jax.report.evaluation_drawings import Drawing
from dso_jax.report.evaluation_items import KINDS, card, guards

ORDERS = {  # data attribute -> what the list is called, in what order
    "worst": "worst change first",
    "best": "best change first",
    "tilt": "largest tilt first",
    "margin": "smallest margin first",
    "cd": "farthest from the true object first",
    "name": "by name",
}
_NEVER = 1e9  # worse than any angle


def kinds(result: Result) -> list[str]:
    """One of `KINDS` for each mesh."""
    columns = result.columns
    before = columns.get(f"{BEFORE}stable")
    compared = [False] * len(result) if before is None else columns[f"{BEFORE}status"] != "invalid"
    found = []
    for row, (status, stable) in enumerate(zip(columns["status"], columns["stable"], strict=True)):
        if status == "invalid":
            found.append("invalid")
        elif before is not None and compared[row] and bool(before[row]) != bool(stable):
            found.append("fixed" if stable else "broken")
        else:
            found.append("stands" if stable else "falls")
    return found


def change(result: Result) -> Float[np.ndarray, " N"]:
    """How much worse each mesh became, degrees of tilt; a lost verdict counts above any angle.

    Without a comparison it is the tilt; what stands is ordered by its margin.
    """
    columns = result.columns
    lost = columns["status"] == "invalid"
    tilt = np.where(lost, 0.0, columns["tilt_deg"])
    worse = np.where(columns["stable"], -columns["margin_deg"] / 90, 180 + tilt)
    if f"{BEFORE}stable" in columns:
        known = columns[f"{BEFORE}status"] != "invalid"
        difference = tilt - np.where(known, columns[f"{BEFORE}tilt_deg"], tilt)
        flips = columns[f"{BEFORE}stable"].astype(float) - columns["stable"]
        worse = difference + 180 * np.where(known, flips, 0)
    return np.nan_to_num(np.where(lost, _NEVER, worse), nan=0.0)


def gallery(
    result: Result,
    rows: Sequence[int],
    after: Mapping[int, Drawing | None],
    before: Mapping[int, Drawing | None],
    folder: Path,
) -> str:
    """The section.

    Args:
        result: the evaluation.
        rows: which meshes, in this order.
        after, before: their pictures by row.
        folder: where the page will lie; links to meshes are relative to it.
    """
    found, worse = kinds(result), change(result)
    cards = "".join(
        card(result, row, found[row], float(worse[row]), after, before, folder) for row in rows
    )
    shown = f"{len(rows)} of {len(result)} meshes"
    rest = "" if len(rows) == len(result) else " The others are in results.csv."
    return (
        '<section id="gallery" tabindex="-1"><h2>Every mesh</h2>'
        "<p>As it is put down, where it comes to rest, and from above: its outline, what it stands "
        "on, its centre of mass, and the way to the nearest edge: what has its mass outside rocks "
        "or falls from there. Names are links to the files."
        f"{rest}</p>{_filters(result, rows, found)}"
        f'<p class="count" id="count" role="status">{shown}</p>'
        f'<div class="items{" paired" if before else ""}" id="items">{cards}</div>'
        '<p id="none" hidden>No mesh is like that.</p></section>'
    )


def _filters(result: Result, rows: Sequence[int], found: Sequence[str]) -> str:
    columns = result.columns
    count = Counter(found[row] for row in rows)
    verdicts = {kind: f"{KINDS[kind][0]} ({count[kind]})" for kind in KINDS if count[kind]}
    groups = Counter(str(columns["category"][row]) for row in rows)
    fired = Counter(name for row in rows for name in guards(result, row))
    orders = dict(ORDERS)
    if "cd" not in columns:
        del orders["cd"]
    if f"{BEFORE}path" not in columns:
        orders |= {"worst": "worst first", "best": "best first"}
    selects = _select("kind", "verdict", verdicts)
    if len(groups) > 1:
        listed = {name: f"{name or 'none'} ({n})" for name, n in sorted(groups.items())}
        selects += _select("category", "category", listed)
    if fired:
        listed = {name: f"{name.replace('_', ' ')} ({n})" for name, n in fired.most_common()}
        selects += _select("guard", "guard", {"any": "any", **listed})
    return (
        '<form class="filters" id="filters" hidden><label>name <input type="search" name="text" '
        f'autocomplete="off"></label>{selects}{_select("order", "order", orders, every=False)}'
        '<button type="reset">show all</button></form>'
    )


def _select(name: str, label: str, options: Mapping[str, str], every: bool = True) -> str:
    listed = "".join(
        f'<option value="={escape(value)}">{escape(text)}</option>'
        if every
        else f'<option value="{escape(value)}">{escape(text)}</option>'
        for value, text in options.items()
    )
    first = '<option value="">all</option>' if every else ""
    return f'<label>{label} <select name="{name}">{first}{listed}</select></label>'
