"""The report of a comparison as one HTML file that needs nothing else.

Pictures are embedded, charts are inline SVG, the style sheet is inline and there is no script, so
the file works offline, in a mail, and without a mouse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from dso_jax.report import charts, html, summary
from dso_jax.statistics import Interval

# Metric of training -> title of its chart; drawn where a run logged it.
CURVES = {
    "loss": "Loss",
    "implicit_accuracy": "Pairs ranked right (implicit accuracy)",
    "margin": "Margin: how much more the loser's error grew",
    "win_drift": "Winner's error, change from the reference",
    "lose_drift": "Loser's error, change from the reference",
    "grad_norm": "Gradient norm",
    "stable": "Held-out samples that stand",
}


class Cell(NamedTuple):
    """One method's sample in the gallery: pictures as PNG files, and what happened to it."""

    start: bytes
    rest: bytes
    stable: bool
    status: str
    tilt_deg: float


class Exhibit(NamedTuple):
    """One held-out object in the gallery: its condition image and one cell for each method."""

    name: str
    prompt: bytes
    cells: Mapping[str, Cell]


def render(
    results: Mapping,
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    gallery: Sequence[Exhibit],
) -> str:
    """Writes the page.

    Args:
        results: contents of summary.json.
        curves: method -> rows of metrics, each with `step`.
        gallery: objects to show, each with every method.

    Returns:
        A complete HTML document.
    """
    methods = results["methods"]
    colours = {name: index for index, name in enumerate(methods)}
    sections = [
        _headline(results, colours),
        _gallery(gallery, list(methods)),
        _guards(methods),
        _training(curves, colours),
        _seeds(results),
        _origin(results),
    ]
    return html.document("DSO-JAX: what stands", "".join(sections))


def title(method: str) -> str:
    """How a method is called in tables: base, SFT, DPO, DRO."""
    return method if method == summary.BASE else method.upper()


def _headline(results: Mapping, colours: Mapping[str, int]) -> str:
    methods = results["methods"]
    rows = [
        charts.Row(title(name), colours[name], Interval(**_fraction(numbers["stable_percent"])))
        for name, numbers in methods.items()
    ]
    chart = charts.interval_chart(
        "Samples that stand, with 95 % intervals", rows, "per cent of held-out samples"
    )
    head = ["method", "stand, %", "difference from base, points", "fixed", "broken"]
    head += ["tilt, mean °", "median °", "IoU"]
    body = [
        [
            title(name),
            _interval(numbers["stable_percent"]),
            _interval(numbers.get("difference_points"), sign="+"),
            _number(numbers.get("fixed"), ".0f"),
            _number(numbers.get("broken"), ".0f"),
            _number(numbers["tilt_mean_deg"], ".1f"),
            _number(numbers["tilt_median_deg"], ".1f"),
            _number(numbers["iou"], ".3f"),
        ]
        for name, numbers in methods.items()
    ]
    return (
        f'<h1>DSO-JAX report</h1><div class="verdict">{escape(summary.verdict(methods))}</div>'
        f'<div class="card rates">{chart}</div><h2>The comparison</h2>'
        f"<p>{results['samples']} samples of {results['objects']} held-out objects, each dropped "
        "in the simulator. Every method starts from the same noise, so differences are paired; "
        "intervals are bootstraps that resample objects. Fixed: fell before and stands now. "
        "Broken: the reverse.</p>" + html.scroll(html.table(head, body), "comparison")
    )


def _gallery(gallery: Sequence[Exhibit], methods: Sequence[str]) -> str:
    if not gallery:
        return ""
    rows = []
    for exhibit in gallery:
        prompt = html.image(exhibit.prompt, f"condition image of {exhibit.name}", "prompt")
        cells = "".join(f"<td>{_cell(exhibit, name)}</td>" for name in methods)
        rows.append(f"<tr><td>{prompt}{escape(exhibit.name)}</td>{cells}</tr>")
    head = "".join(
        f'<th scope="col">{escape(name)}</th>' for name in ("image", *map(title, methods))
    )
    return (
        "<section><h2>The same objects, before and after</h2>"
        "<p>Each row is one image and one noise. First come samples that the base lets fall, then "
        "samples that it keeps upright; nobody chose them: they are the first of each kind in the "
        "order of the evaluation, one an object."
        "</p>"
        '<fieldset class="switch"><label><input type="radio" name="pose" checked> '
        "where it came to rest</label>"
        '<label><input type="radio" name="pose" id="show-start"> as it was put down</label>'
        "</fieldset>"
        + html.scroll(
            f'<table class="gallery"><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>",
            "pictures",
        )
        + "</section>"
    )


def _cell(exhibit: Exhibit, method: str) -> str:
    cell = exhibit.cells[method]
    word, style = ("stands", "good") if cell.stable else ("falls", "bad")
    if cell.status == "invalid":
        word, tilt = "invalid", ""
    else:
        tilt = f" <small>{cell.tilt_deg:.1f}°</small>"
        word += ", still moving" if cell.status == "moving" else ""
    name = f"{exhibit.name}, {method}"
    return (
        html.image(cell.rest, f"{name}, at rest: {word}", "pose-rest")
        + html.image(cell.start, f"{name}, at the start", "pose-start")
        + f'<span class="{style}">{word}</span>{tilt}'
    )


def _guards(methods: Mapping[str, dict]) -> str:
    tuned = {name: numbers for name, numbers in methods.items() if "guards" in numbers}
    if not tuned:
        return ""
    first = next(iter(tuned.values()))["guards"]
    body = []
    for key, guard in first.items():
        row = [guard["label"], _bounds(guard), _number(guard["base"], ".3f")]
        for numbers in tuned.values():
            found = numbers["guards"][key]
            change = f"{found['change']:.2f}×" if found["relative"] else f"{found['change']:+.3f}"
            style, word = ("good", "ok") if found["passes"] else ("bad", "outside")
            row.append(
                f"{_number(found['value'], '.3f')} <small>{change}</small> "
                f'<span class="{style}">{word}</span>'
            )
        body.append(row)
    head = ["quantity", "allowed change", "base", *map(title, tuned)]
    return (
        "<h2>Guards</h2><p>Ways to stand that would not count: growing a broad foot, shrinking, "
        "ignoring the image, falling apart, or making nothing at all. Means over all samples, "
        "and their change from the base.</p>" + html.scroll(html.table(head, body), "guards")
    )


def _training(curves: Mapping[str, Sequence[Mapping]], colours: Mapping[str, int]) -> str:
    drawn = []
    for metric, heading in CURVES.items():
        series = []
        for name, rows in curves.items():
            points = [(r["step"], r[metric]) for r in rows if r.get(metric) is not None]
            if points:
                x, y = zip(*points, strict=True)
                series.append(charts.Series(title(name), colours[name], x, y))
        drawn.append(charts.line_chart(heading, series))
    cards = "".join(f'<div class="card">{chart}</div>' for chart in drawn if chart)
    return f'<h2>Training</h2><div class="columns">{cards}</div>' if cards else ""


def _seeds(results: Mapping) -> str:
    if len(results["seeds"]) < 2:
        return ""
    body = [
        [
            str(run["seed"]),
            title(run["method"]),
            _interval(run["stable_percent"]),
            _interval(run.get("difference_points"), sign="+"),
            _number(run["iou"], ".3f"),
        ]
        for run in results["runs"]
    ]
    head = ["seed", "method", "stand, %", "difference from base, points", "IoU"]
    return "<h2>Each seed</h2>" + html.scroll(html.table(head, body), "each seed")


def _origin(results: Mapping) -> str:
    protocol, base = results["protocol"], results["base"]
    facts = {
        "command": f"<code>{escape(results['command'])}</code>",
        "made": escape(results["created"]),
        "device": escape(results["device"]),
        "base": f"{escape(base['name'])} <small>sha256 {escape(base['sha256'][:16])}</small>",
        "protocol": f"{escape(protocol['name'])} <small>{escape(protocol['hash'])}</small>",
        "seeds": ", ".join(map(str, results["seeds"])),
        "versions": ", ".join(f"{escape(k)} {escape(v)}" for k, v in results["versions"].items()),
        "seconds": ", ".join(f"{escape(k)} {v:.0f}" for k, v in results["seconds"].items()),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return f'<h2>What made this</h2><dl class="card">{rows}</dl>'


def _interval(numbers: Mapping[str, float] | None, sign: str = "") -> str:
    if numbers is None:
        return "–"
    low, high = format(numbers["low"], f"{sign}.1f"), format(numbers["high"], f"{sign}.1f")
    return f"<b>{numbers['mean']:{sign}.1f}</b> <small>{low} to {high}</small>"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _bounds(guard: Mapping) -> str:
    form, unit = (".2f", "×") if guard["relative"] else ("+.2f", "")
    low, high = (
        None if guard[side] is None else f"{guard[side]:{form}}{unit}" for side in ("low", "high")
    )
    if low and high:
        return f"{low} to {high}"
    return f"at least {low}" if low else f"at most {high}"


def _fraction(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value / 100 for name, value in numbers.items()}
