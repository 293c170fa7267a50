"""How far a voxel object is from tipping: the static margin over its support polygon."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool


def static_margin_deg(solid: Bool[np.ndarray, "x y z"]) -> float:
    """Smallest angle, in degrees, by which the object must turn before it tips.

    The support polygon is the convex hull of the centres of the lowest layer's voxels: occupancy
    becomes a body through the surface between voxel centres, which reaches the ground only under
    them. The centre of mass is that of the solid voxels at uniform density. Negative when it lies
    outside the polygon: the object falls where it is put down.

    Raises:
      ValueError: if no voxel is occupied.
    """
    layers = solid.sum(axis=(0, 1))
    if not layers.any():
        raise ValueError("occupancy: no voxel is occupied, so there is nothing to balance")
    lowest = int(np.argmax(layers > 0))
    columns = solid.sum(axis=2)
    total = columns.sum()
    index = np.arange(max(solid.shape)) + 0.5
    x = float(columns.sum(axis=1) @ index[: solid.shape[0]] / total)
    y = float(columns.sum(axis=0) @ index[: solid.shape[1]] / total)
    height = float(layers @ index[: solid.shape[2]] / total) - lowest
    corners = support_polygon(solid[:, :, lowest])
    distance = min(
        _signed_distance(p, q, (x, y))
        for p, q in zip(corners, corners[1:] + corners[:1], strict=True)
    )
    return math.degrees(math.atan2(distance, height))


def support_polygon(layer: Bool[np.ndarray, "x y"]) -> list[tuple[float, float]]:
    """Counter-clockwise convex hull of the centres of a layer's occupied cells."""
    points: list[tuple[float, float]] = []
    for i in np.flatnonzero(layer.any(axis=1)):
        row = np.flatnonzero(layer[i])
        points += [(i + 0.5, j + 0.5) for j in dict.fromkeys((int(row[0]), int(row[-1])))]
    return _half_hull(points)[:-1] + _half_hull(points[::-1])[:-1]


def _half_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _cross(hull[-2], hull[-1], point) <= 0.0:
            hull.pop()
        hull.append(point)
    return hull


def _cross(origin, p, q) -> float:
    return (p[0] - origin[0]) * (q[1] - origin[1]) - (p[1] - origin[1]) * (q[0] - origin[0])


def _signed_distance(p, q, point) -> float:
    """Distance of `point` from line p-q, positive on the left (inside a counter-clockwise hull)."""
    return _cross(p, q, point) / math.hypot(q[0] - p[0], q[1] - p[1])
