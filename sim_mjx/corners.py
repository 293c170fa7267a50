"""Which corners of a hull's flat faces touch the ground, as MuJoCo 4 chooses them.

Legend: H hull vertices, P polygons, C corners of all polygons (lanes), m lanes in play.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def contact_corners(
    corners: Int[np.ndarray, " C"], sizes: Int[np.ndarray, " P"], vertices: Float[np.ndarray, "H 3"]
) -> Int[np.ndarray, "C 4"]:
    """For each corner of each polygon, what becomes a contact when that corner is deepest.

    MuJoCo 4 starts from the corner and the next three, and advances the last three around the
    polygon for as long as the area of the quadrilateral grows. Areas do not depend on the pose, so
    the outcome is a table. All corners of all polygons climb at once here.

    Args:
        corners: of one polygon after the other, indices into `vertices`.
        sizes: number of corners of each polygon, 3 or more.
        vertices: of the hull.

    Returns:
        Indices into `vertices`; a triangle repeats its first corner.
    """
    count = np.repeat(sizes, sizes)
    base = np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = np.arange(len(corners)) - base
    quad = (turn + np.arange(4)[:, None]) % count
    quad[3, count == 3] = quad[0, count == 3]
    lanes = np.flatnonzero(count > 4)
    if len(lanes):
        quad[:, lanes] = _climb(quad[:, lanes], base[lanes], count[lanes], vertices[corners])
    return corners[base + quad].T


def _climb(quad, base, count, points: Float[np.ndarray, "C 3"]) -> Int[np.ndarray, "4 m"]:
    """Quadrilaterals (indices within their polygon) advanced to where their area stops growing."""
    # One array an axis: the loop below is all small arithmetic.
    axes = np.ascontiguousarray(points.T)
    area = _area(axes, base + quad)

    def advance(side: int, lanes: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Moves corner `side` on by one in those of `lanes` that gain area; returns these."""
        ahead = quad[:, lanes]
        ahead[side] = (ahead[side] + 1) % count[lanes]
        grown = _area(axes, base[lanes] + ahead)
        gains: Bool[np.ndarray, " m"] = grown > area[lanes]
        moved = lanes[gains]
        quad[side, moved] = ahead[side, gains]
        area[moved] = grown[gains]
        return moved

    climbing = np.arange(quad.shape[1])
    while len(climbing):
        climbing = advance(3, climbing)
        for side in (2, 1):
            inner = climbing
            while len(inner):
                inner = advance(side, inner)
    return quad


def _area(axes: Float[np.ndarray, "3 C"], quad: Int[np.ndarray, "4 m"]) -> Float[np.ndarray, " m"]:
    a, b, c, d = (axes[:, corner] for corner in quad)
    (x, y, z), (u, v, w) = c - a, d - b
    i, j, k = y * w - z * v, z * u - x * w, x * v - y * u
    return 0.5 * np.sqrt(i * i + j * j + k * k)
