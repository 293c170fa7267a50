"""Which corners of a hull's flat faces touch the ground, as MuJoCo 4 chooses them.

Legend: H hull vertices, P polygons, C corners of all polygons (lanes), m lanes in play.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_NEXT, _LAST = np.array([1, 2, 0]), np.array([2, 0, 1])


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
    quad += base
    large = np.flatnonzero(count > 4)
    if len(large):
        after = np.zeros(len(corners), np.int64)
        after[large] = quad[1, large]
        quad[:, large] = _climb(quad[:, large], after, vertices[corners])
    return corners[quad].T


def _climb(
    quad: Int[np.ndarray, "4 m"], after: Int[np.ndarray, " C"], points: Float[np.ndarray, "C 3"]
) -> Int[np.ndarray, "4 m"]:
    """Advances quadrilaterals to where their area stops growing.

    Each lane tries its side: the last corner first, after a gain the third for as long as it gains,
    then the second likewise, then the last again, until that one gains nothing.

    Args:
        quad: four corners a lane.
        after: the next corner around the polygon.
        points: where the corners are.
    """
    axes = np.ascontiguousarray(points.T)
    final = quad.copy()
    lanes = np.arange(quad.shape[1])
    side = np.full(len(lanes), 3)
    area = _area(axes, quad)
    while len(lanes):
        ahead = quad.copy()
        here = side, np.arange(len(lanes))
        ahead[here] = after[quad[here]]
        grown = _area(axes, ahead)
        gains = grown > area
        quad, area = np.where(gains, ahead, quad), np.where(gains, grown, area)
        done = (side == 3) & ~gains
        side = np.where(gains, np.minimum(side, 2), np.where(side == 1, 3, side - 1))
        if done.any():
            final[:, lanes[done]] = quad[:, done]
            lanes, side, area, quad = lanes[~done], side[~done], area[~done], quad[:, ~done]
    return final


def _area(axes: Float[np.ndarray, "3 C"], quad: Int[np.ndarray, "4 m"]) -> Float[np.ndarray, " m"]:
    corners = axes.take(quad, axis=1)
    first, second = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    cross = first.take(_NEXT, axis=0) * second.take(_LAST, axis=0)
    cross -= first.take(_LAST, axis=0) * second.take(_NEXT, axis=0)
    cross *= cross
    return 0.5 * np.sqrt(cross[0] + cross[1] + cross[2])
