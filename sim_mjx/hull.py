"""Convex hulls as MuJoCo 4 sees them: vertices, merged flat faces, and contact corners.

Legend: N input points, H hull vertices, F hull triangles, P polygons, n corners of one polygon.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, QhullError

from sim_mjx.bodies import BodyError

# Triangles are coplanar when azimuth and polar angle of their normals round to the same multiple of
# this (radians), in the file's frame: MuJoCo's grouping, which decides where contacts can be.
_ANGLE = 0.01
# Normals this close to the poles have no azimuth.
_POLE = 1.0 - 1e-7


@dataclasses.dataclass(frozen=True)
class Hull:
    """A convex hull.

    Attributes:
        vertices: hull vertices, in the frame of the input.
        triangles: indices into `vertices`, counter-clockwise seen from outside.
        polygons: corners of the merged faces, indices into `vertices`, counter-clockwise.
        normals: one outward unit normal a polygon.
    """

    vertices: Float[np.ndarray, "H 3"]
    triangles: Int[np.ndarray, "F 3"]
    polygons: list[Int[np.ndarray, " _"]]
    normals: Float[np.ndarray, "P 3"]


def convex_hull(points: Float[np.ndarray, "N 3"]) -> Hull:
    """The hull with its coplanar triangles merged.

    Raises:
        BodyError: `flat` if the points span no volume.
    """
    try:
        hull = ConvexHull(points)
    except (QhullError, ValueError) as error:
        raise BodyError("flat", "the vertices span no volume") from error
    used, flat = np.unique(hull.simplices, return_inverse=True)
    vertices, triangles = points[used], flat.reshape(-1, 3)
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    inward = np.einsum("fi,fi->f", cross, hull.equations[:, :3]) < 0
    triangles[inward] = triangles[inward][:, ::-1]
    cross[inward] *= -1
    polygons, normals = _merge(triangles, cross)
    return Hull(vertices, triangles, polygons, normals)


def contact_corners(
    polygon: Int[np.ndarray, " n"], vertices: Float[np.ndarray, "H 3"]
) -> Int[np.ndarray, "n 4"]:
    """For each corner of a polygon, the corners that become contacts when that one is deepest.

    MuJoCo 4 starts from the corner and the next three, and advances the last three around the
    polygon for as long as the area of the quadrilateral grows. Areas do not depend on the pose, so
    the outcome is a table. All corners climb at once here.
    """
    count = len(polygon)
    if count <= 4:
        turns = (np.arange(count)[:, None] + np.arange(4)) % count
        if count == 3:
            turns[:, 3] = turns[:, 0]
        return polygon[turns]
    corners = vertices[polygon]
    first = np.arange(count)
    quad = np.stack([first, first + 1, first + 2, first + 3]) % count
    area = _area(corners, quad)
    climbing = np.ones(count, bool)
    while climbing.any():
        moved, area = _advance(corners, quad, area, 3, climbing)
        for side in (2, 1):
            inner = moved.copy()
            while inner.any():
                inner, area = _advance(corners, quad, area, side, inner)
        climbing = moved
    return polygon[quad.T]


def _advance(corners, quad, area, side, lanes):
    """Moves corner `side` of each quadrilateral on by one where that gains area (in place)."""
    ahead = quad.copy()
    ahead[side] = (ahead[side] + 1) % len(corners)
    grown = _area(corners, ahead)
    gains = lanes & (grown > area)
    quad[:, gains] = ahead[:, gains]
    return gains, np.where(gains, grown, area)


def _area(corners: Float[np.ndarray, "n 3"], quad: Int[np.ndarray, "4 m"]):
    a, b, c, d = corners[quad]
    return 0.5 * np.linalg.norm(np.cross(c - a, d - b), axis=1)


def _merge(
    triangles: Int[np.ndarray, "F 3"], cross: Float[np.ndarray, "F 3"]
) -> tuple[list[Int[np.ndarray, " _"]], Float[np.ndarray, "P 3"]]:
    """Merges edge-connected triangles with the same rounded normal."""
    area = np.linalg.norm(cross, axis=1)
    kept = area > 1e-15  # MuJoCo's smallest number: slivers have no normal
    triangles, cross, area = triangles[kept], cross[kept], area[kept]
    unit = cross / area[:, None] + 0.0  # no negative zeros: atan2 would see the other half turn
    polar = np.arccos(np.clip(unit[:, 2], -1.0, 1.0))
    azimuth = np.where(np.abs(unit[:, 2]) > _POLE, 0.0, np.arctan2(unit[:, 1], unit[:, 0]))
    keys = np.round(np.stack([azimuth, polar]) / _ANGLE).T
    # Triangles that share an edge and a key belong together.
    edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]], axis=2).reshape(-1, 2)
    owner = np.repeat(np.arange(len(triangles)), 3)
    order = np.lexsort(edges.T)
    same = (edges[order][1:] == edges[order][:-1]).all(axis=1)
    left, right = owner[order][:-1][same], owner[order][1:][same]
    joined = (keys[left] == keys[right]).all(axis=1)
    graph = coo_array(
        (np.ones(joined.sum()), (left[joined], right[joined])), shape=(len(triangles),) * 2
    )
    groups, label = connected_components(graph, directed=False)
    normals = np.zeros((groups, 3))
    np.add.at(normals, label, cross)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    members = np.split(np.argsort(label, kind="stable"), np.cumsum(np.bincount(label))[:-1])
    return [_outline(triangles[m]) for m in members], normals


def _outline(triangles: Int[np.ndarray, "f 3"]) -> Int[np.ndarray, " n"]:
    """Corners around a patch of triangles, in their winding."""
    if len(triangles) == 1:
        return triangles[0]
    directed = collections.Counter(
        (int(t[k]), int(t[(k + 1) % 3])) for t in triangles for k in range(3)
    )
    after = {a: b for a, b in directed if (b, a) not in directed}
    start = corner = next(iter(after))
    loop = [start]
    while (corner := after[corner]) != start and len(loop) <= len(after):
        loop.append(corner)
    return np.array(loop)
