"""What an object stands on, from above, as inline SVG.

The outline of the object, the support polygon in it, the centre of mass, and the way to the nearest
edge of that polygon: the margin. Colours come from the style sheet.
"""

from __future__ import annotations

from html import escape

import numpy as np
from jaxtyping import Float

from sim_mjx.explain import Footing

SIDE = 100.0  # of the drawing
ROOM = 8.0  # around what is drawn
CORNERS = 36  # of a polygon; more are not seen
CROSS = 5.0


def footing_svg(footing: Footing, outline: Float[np.ndarray, "m 2"], text: str) -> str:
    """The drawing.

    Args:
        footing: at the start.
        outline: of the object from above.
        text: what to say of it where it cannot be seen.
    """
    com = footing.com[:2]
    drawn = np.concatenate([outline, footing.points[:, :2], com[None]])
    low, high = drawn.min(0), drawn.max(0)
    scale = (SIDE - 2 * ROOM) / max(float((high - low).max()), 1e-12)

    def at(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        return SIDE / 2 + (points - (low + high) / 2) * [scale, -scale]

    x, y = at(com[None])[0]
    parts = [_polygon(at(outline), "outline"), _polygon(at(footing.corners), "support")]
    inside = False
    if len(footing.corners):
        (u, v), inside = _nearest(footing.corners, com)
        (u, v) = at(np.array([[u, v]]))[0]
        parts.append(f'<path class="way" d="M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}"/>')
    else:
        flat = at(_thinned(footing.points[:, :2]))
        parts.append(
            "".join(f'<circle class="foot" cx="{a:.1f}" cy="{b:.1f}" r="2"/>' for a, b in flat)
        )
    style = "good" if inside else "bad"
    parts.append(
        f'<path class="com {style}" d="M{x - CROSS:.1f} {y:.1f}h{2 * CROSS:g}'
        f'M{x:.1f} {y - CROSS:.1f}v{2 * CROSS:g}"/>'
    )
    return (
        f'<svg class="feet" viewBox="0 0 {SIDE:g} {SIDE:g}" role="img" aria-label="{escape(text)}">'
        f"{''.join(parts)}</svg>"
    )


def _nearest(
    corners: Float[np.ndarray, "m 2"], point: Float[np.ndarray, " 2"]
) -> tuple[Float[np.ndarray, " 2"], bool]:
    """The nearest point of a counter-clockwise convex polygon's edges, and whether it holds one."""
    edges = np.roll(corners, -1, axis=0) - corners
    away = point - corners
    share = np.clip((away * edges).sum(1) / (edges**2).sum(1), 0, 1)[:, None]
    feet = corners + share * edges
    inside = bool((edges[:, 0] * away[:, 1] >= edges[:, 1] * away[:, 0]).all())
    return feet[((feet - point) ** 2).sum(1).argmin()], inside


def _polygon(points: Float[np.ndarray, "m 2"], style: str) -> str:
    if not len(points):
        return ""
    listed = " ".join(f"{x:.0f},{y:.0f}" for x, y in _thinned(points))
    return f'<polygon class="{style}" points="{listed}"/>'


def _thinned(points: np.ndarray) -> np.ndarray:
    return points[:: max(1, -(-len(points) // CORNERS))]
