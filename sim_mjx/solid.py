"""The solid that a surface encloses, on a grid: what a print with full infill weighs.

Two neighbouring grid points are linked unless the surface passes between them. What the border
reaches over links is outside, all else is solid: inner shells, inverted or mixed windings and
overlapping parts make no difference. A part with an opening wider than a cell is not solid.

Legend: N vertices, F triangles, X Y Z grid points an axis, P pairs of a triangle and a grid line.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Per link, where it is first and last cut; infinite where it is not.
Crossings = tuple[Float[np.ndarray, "X Y Z"], Float[np.ndarray, "X Y Z"]]

# Grid points along the longest side.
RESOLUTION = 64
# A share of a cell that keeps grid lines off the edges of axis-aligned meshes.
_OFFSET = np.array([0.00123, 0.00231, 0.00312])
_PAIRS = 2**20  # worked on at once


def solid_integrals(
    vertices: Float[np.ndarray, "N 3"], triangles: Int[np.ndarray, "F 3"]
) -> tuple[float, Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
    """Volume, centre of mass, and inertia tensor about it, of the enclosed solid.

    All are zero where nothing is enclosed.
    """
    low, size = vertices.min(axis=0), np.ptp(vertices, axis=0)
    cell = size.max() / RESOLUTION
    # One point beyond the surface on every side.
    count = np.ceil(size / cell).astype(int) + 2
    origin = low - cell * (0.5 + _OFFSET)
    crossings = [_crossings(((vertices - origin) / cell)[triangles], k, count) for k in range(3)]
    solid = _enclosed(crossings)
    points = np.argwhere(solid).astype(np.float64)
    if not len(points):
        return 0.0, low + size / 2, np.zeros((3, 3))
    mass = _shares(solid, crossings)
    centre = mass @ points / mass.sum()
    arms = points - centre
    second = (mass[:, None] * arms).T @ arms
    second += mass.sum() / 12 * np.eye(3)  # each cell about its own centre
    tensor = (np.trace(second) * np.eye(3) - second) * cell**5
    return float(mass.sum() * cell**3), origin + cell * centre, tensor


def _enclosed(crossings: list[Crossings]) -> Bool[np.ndarray, "X Y Z"]:
    """Which grid points the border does not reach."""
    # Unbroken runs along z are the nodes of a graph that x and y connect.
    free_x, free_y, free_z = (np.isinf(first) for first, _ in crossings)
    starts = np.ones((*free_z.shape[:2], free_z.shape[2] + 1), bool)
    starts[:, :, 1:] = ~free_z
    run = np.cumsum(starts).reshape(starts.shape) - 1
    left = np.concatenate([run[1:][free_x], run[:, 1:][free_y]])
    right = np.concatenate([run[:-1][free_x], run[:, :-1][free_y]])
    nodes = int(run[-1, -1, -1]) + 1
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(nodes, nodes))
    label = connected_components(graph, directed=False)[1][run]
    return label != label[0, 0, 0]


def _shares(
    solid: Bool[np.ndarray, "X Y Z"], crossings: list[Crossings]
) -> Float[np.ndarray, " _"]:
    """How much of a cell each solid point stands for, by where the surface cuts its links.

    Without this the sides of a box would be wherever the nearest cell ends. A point's share is one
    cell and what is beyond the cell's sides, or short of them, along one axis: a slanted surface
    cuts several links of a point, the nearest along the axis that it is most square to.
    """
    nearest, extra = np.full(solid.shape, np.inf), np.zeros(solid.shape)
    for axis, (first, last) in enumerate(crossings):
        pad = [(0, 0)] * 3
        pad[axis] = (0, 1)
        ahead = np.pad(first, pad, constant_values=np.inf)
        pad[axis] = (1, 0)
        behind = np.pad(1 - last, pad, constant_values=np.inf)
        closer = np.minimum(ahead, behind) < nearest
        beyond = [np.where(np.isinf(reach), 0.0, reach - 0.5) for reach in (ahead, behind)]
        extra = np.where(closer, beyond[0] + beyond[1], extra)
        nearest = np.minimum(nearest, np.minimum(ahead, behind))
    return (1 + extra)[solid]


def _crossings(
    corners: Float[np.ndarray, "F 3 3"], axis: int, count: Int[np.ndarray, "3"]
) -> Crossings:
    """Where the surface first and last cuts the links along `axis`, each from 0 to 1."""
    u, v = (k for k in range(3) if k != axis)
    shape = count.copy()
    shape[axis] -= 1
    first, last = np.full(shape, np.inf), np.full(shape, -np.inf)
    low, high = np.ceil(corners.min(axis=1)).astype(int), np.floor(corners.max(axis=1)).astype(int)
    wide, tall = (np.maximum(high[:, k] - low[:, k] + 1, 0) for k in (u, v))
    # Triangle by triangle, the grid lines within its bounds; a block of pairs at a time.
    total = np.cumsum(wide * tall)
    begin = 0
    while begin < len(corners):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + _PAIRS, side="right")))
        part = slice(begin, end)
        lines = (wide * tall)[part]
        owner = np.repeat(np.arange(begin, end), lines)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(lines) - lines, lines)
        i, j = low[owner, u] + place // tall[owner], low[owner, v] + place % tall[owner]
        height, hit = _heights(corners[owner], u, v, axis, i, j)
        height = height[hit]
        below = np.floor(height).astype(int)
        index: list = [None, None, None]
        index[u], index[v], index[axis] = i[hit], j[hit], below
        np.minimum.at(first, tuple(index), height - below)
        np.maximum.at(last, tuple(index), height - below)
        begin = end
    return first, last


def _heights(corners, u, v, axis, i, j) -> tuple[Float[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """Where each grid line meets the plane of its triangle, and whether inside the triangle."""
    a, b, c = (corners[:, k] for k in range(3))

    def turn(first, second):
        """Twice the signed area that the grid line spans with an edge."""
        return (first[:, u] - i) * (second[:, v] - j) - (first[:, v] - j) * (second[:, u] - i)

    weights = np.stack([turn(b, c), turn(c, a), turn(a, b)])
    area = weights.sum(axis=0)
    # Lines through an edge belong to both triangles: a surface has no gaps.
    hit = ((weights >= 0).all(axis=0) | (weights <= 0).all(axis=0)) & (area != 0)
    height = np.zeros(len(i))
    np.divide(
        weights[0] * a[:, axis] + weights[1] * b[:, axis] + weights[2] * c[:, axis],
        area,
        out=height,
        where=hit,
    )
    # Rounding must not carry a height out of its triangle, and so out of the grid.
    heights = corners[:, :, axis]
    return np.clip(height, heights.min(axis=1), heights.max(axis=1)), hit
