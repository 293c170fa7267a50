"""Line and interval charts as inline SVG.

Colours come from the page's style sheet (classes `series-0`, `series-1`, ...), so one drawing
serves light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from dso_jax.statistics import Interval

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
SQUARE = 360  # height of a scatter chart
ENDS = ("x", "y", "low", "high")  # of a series, what is thinned alike
MAX_POINTS = 240  # a longer curve is thinned to about two points a pixel


class Series(NamedTuple):
    """One curve: its name, its colour (number of the method) and its points, x ascending.

    `low` and `high` are the ends of an interval around each point, if there is one.
    """

    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Row(NamedTuple):
    """One line of an interval chart."""

    name: str
    colour: int
    interval: Interval


def line_chart(title: str, series: Sequence[Series], x_label: str = "step") -> str:
    """Draws curves over a common x axis; points that are not finite leave a gap.

    Returns:
        A `<figure>` element, or an empty string if there is nothing finite to draw.
    """
    thinned = [one._replace(**{k: _thin(getattr(one, k)) for k in ENDS}) for one in series]
    points = [p for one in thinned for p in zip(one.x, one.y, strict=True) if _finite(p)]
    bands = [_band(one) for one in thinned]
    if not points:
        return ""
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points))
    heights = [y for _, y in [*points, *(p for band in bands for p in band)]]
    y_ticks = ticks(min(heights), max(heights))
    to_x = _scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    to_y = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [_y_axis(y_ticks, to_y), _x_axis(x_ticks, to_x, HEIGHT, x_label)]
    for one, band in zip(thinned, bands, strict=True):
        edge = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in band)
        parts.append(f'<polygon class="band series-{one.colour}" points="{edge}"/>' if edge else "")
        for run in _runs(one):
            path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in run)
            parts.append(f'<polyline class="curve series-{one.colour}" points="{path}"/>')
    return _figure(title, "".join(parts), HEIGHT, [(one.name, one.colour) for one in series])


def scatter_chart(
    title: str, points: Sequence[tuple[float, float, int]], x_label: str, y_label: str
) -> str:
    """Draws points (x, y, colour) over two axes of the same range, with the line x = y."""
    axis = ticks(0.0, max(max(x, y) for x, y, _ in points))
    to_x = _scale(axis[0], axis[-1], LEFT, WIDTH - RIGHT)
    to_y = _scale(axis[0], axis[-1], SQUARE - BOTTOM, TOP)
    ends = [f"{to_x(v):.1f} {to_y(v):.1f}" for v in (axis[0], axis[-1])]
    dots = "".join(
        f'<circle class="dot series-{colour}" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.5"/>'
        for x, y, colour in points
    )
    body = (
        f'{_y_axis(axis, to_y)}{_x_axis(axis, to_x, SQUARE, x_label)}<path class="grid" '
        f'd="M{ends[0]}L{ends[1]}"/>{dots}<text class="tick" x="{LEFT + 4}" y="{TOP + 10}">'
        f"{escape(y_label)}</text>"
    )
    return _figure(title, body, SQUARE, [])


def interval_chart(title: str, rows: Sequence[Row], x_label: str) -> str:
    """Draws a mean and its confidence interval for each row, in per cent of `interval`."""
    height = TOP + 34 * len(rows) + BOTTOM
    axis = ticks(
        100 * min(row.interval.low for row in rows), 100 * max(row.interval.high for row in rows)
    )
    to_x = _scale(axis[0], axis[-1], LEFT + 20, WIDTH - RIGHT - 40)
    parts = [_x_axis(axis, to_x, height, x_label)]
    for index, row in enumerate(rows):
        percent = 100 * row.interval.mean
        mean, low, high = (to_x(100 * value) for value in row.interval)
        y = TOP + 34 * index + 17
        parts.append(
            f'<text class="name" x="0" y="{y + 4}">{escape(row.name)}</text>'
            f'<g class="series-{row.colour}"><line class="whisker" x1="{low:.1f}" x2="{high:.1f}" '
            f'y1="{y}" y2="{y}"/><circle cx="{mean:.1f}" cy="{y}" r="5.5"/></g>'
            f'<text class="value" x="{high + 8:.1f}" y="{y + 4}">{percent:.1f}</text>'
        )
    return _figure(title, "".join(parts), height, [])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers at equal steps that enclose low and high."""
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude * count >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _thin(values: Sequence[float]) -> Sequence[float]:
    stride = max(1, math.ceil(len(values) / MAX_POINTS))
    return values[::stride]


def _band(series: Series) -> list[tuple[float, float]]:
    """Around the interval: its lower ends, and its upper ends back; nothing without one."""
    if not series.low:
        return []
    known = [
        (x, low, high)
        for x, low, high in zip(series.x, series.low, series.high, strict=True)
        if _finite((low, high))
    ]
    there, back = [(x, low) for x, low, _ in known], [(x, high) for x, _, high in known[::-1]]
    return there + back


def _runs(series: Series) -> list[list[tuple[float, float]]]:
    """The curve cut where points are not finite; a lone point becomes a dot of zero length."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in zip(series.x, series.y, strict=True):
        if _finite(point):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run if len(run) > 1 else run * 2 for run in runs if run]


def _scale(low: float, high: float, start: float, end: float):
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _label(value: float) -> str:
    return f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:.6g}"


def _y_axis(values: Sequence[float], to_y) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(v):.1f}" '
        f'y2="{to_y(v):.1f}"/><text class="tick end" x="{LEFT - 6}" y="{to_y(v) + 4:.1f}">'
        f"{_label(v)}</text>"
        for v in values
    )


def _x_axis(values: Sequence[float], to_x, height: int, label: str) -> str:
    base = height - BOTTOM
    marks = "".join(
        f'<line class="grid" x1="{to_x(v):.1f}" x2="{to_x(v):.1f}" y1="{TOP}" y2="{base}"/>'
        f'<text class="tick middle" x="{to_x(v):.1f}" y="{base + 14}">{_label(v)}</text>'
        for v in values
    )
    return f'{marks}<text class="tick end" x="{WIDTH - RIGHT}" y="{height - 4}">{label}</text>'


def _figure(title: str, body: str, height: int, legend: Sequence[tuple[str, int]]) -> str:
    keys = "".join(
        f'<span class="key series-{colour}">{escape(name)}</span>'
        for name, colour in legend
        if name
    )
    return (
        f"<figure><figcaption>{escape(title)}{keys}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'
        "</figure>"
    )
