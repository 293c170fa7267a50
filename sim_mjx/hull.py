"""Convex hulls as MuJoCo 4 sees them: vertices and merged flat faces.

Legend: N input points, H hull vertices, F hull triangles, P polygons, C corners of all polygons.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int
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
        corners: corners of the merged faces one face after the other, indices into `vertices`,
            counter-clockwise.
        sizes: number of corners of each merged face.
        normals: one outward unit normal a merged face.
    """

    vertices: Float[np.ndarray, "H 3"]
    triangles: Int[np.ndarray, "F 3"]
    corners: Int[np.ndarray, " C"]
    sizes: Int[np.ndarray, " P"]
    normals: Float[np.ndarray, "P 3"]

    @property
    def polygons(self) -> list[Int[np.ndarray, " _"]]:
        """The corners of each merged face."""
        return np.split(self.corners, np.cumsum(self.sizes)[:-1])


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
    return Hull(vertices, triangles, *_merge(triangles, cross))


def _merge(
    triangles: Int[np.ndarray, "F 3"], cross: Float[np.ndarray, "F 3"]
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " P"], Float[np.ndarray, "P 3"]]:
    """Merges edge-connected triangles with the same rounded normal: corners, sizes, normals."""
    area = np.linalg.norm(cross, axis=1)
    kept = area > 1e-15  # MuJoCo's smallest number: slivers have no normal
    triangles, cross, area = triangles[kept], cross[kept], area[kept]
    unit = cross / area[:, None] + 0.0  # no negative zeros: atan2 would see the other half turn
    polar = np.arccos(np.clip(unit[:, 2], -1.0, 1.0))
    azimuth = np.where(np.abs(unit[:, 2]) > _POLE, 0.0, np.arctan2(unit[:, 1], unit[:, 0]))
    keys = np.round(np.stack([azimuth, polar]) / _ANGLE)
    # Triangles that share an edge and a key belong together.
    after = triangles[:, [1, 2, 0]]
    edges = np.minimum(triangles, after) << 32 | np.maximum(triangles, after)
    order = np.argsort(edges.ravel(), kind="stable")
    edges = edges.ravel()[order]
    same = edges[1:] == edges[:-1]
    left, right = order[:-1][same] // 3, order[1:][same] // 3
    joined = (keys[:, left] == keys[:, right]).all(axis=0)
    label = _components(len(triangles), left[joined], right[joined])
    normals = np.stack([np.bincount(label, weights=cross[:, k]) for k in range(3)], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return *_outlines(triangles, label), normals


def _components(count: int, left: Int[np.ndarray, " _"], right: Int[np.ndarray, " _"]):
    """The connected component of each triangle, numbered by their first members."""
    root = np.arange(count)
    while True:
        a, b = root[left], root[right]
        if (a == b).all():
            break
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root = root[root]
    return (np.cumsum(root == np.arange(count)) - 1)[root]


def _outlines(
    triangles: Int[np.ndarray, "F 3"], label: Int[np.ndarray, " F"]
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " P"]]:
    """Corners around each patch of triangles, in their winding, and how many they are.

    Args:
        triangles: of all patches.
        label: the patch of each triangle, 0 ... P - 1.
    """
    members = np.bincount(label)
    sizes = np.full(len(members), 3)
    alone = members[label] == 1
    loops: dict[int, list[int]] = {}
    if not alone.all():
        # The outline is made of the edges that no triangle of the patch runs along the other way.
        inside = triangles[~alone]
        start, end = inside.ravel(), inside[:, [1, 2, 0]].ravel()
        patch = np.repeat(label[~alone], 3)
        count = int(triangles.max()) + 1
        forth, back = (patch * count + start) * count + end, (patch * count + end) * count + start
        outer = np.flatnonzero(~np.isin(back, forth))
        outer = outer[np.argsort(patch[outer], kind="stable")]
        loops = _walk(patch[outer].tolist(), start[outer].tolist(), end[outer].tolist())
        sizes[list(loops)] = [len(loop) for loop in loops.values()]
    first = np.cumsum(sizes) - sizes
    corners = np.empty(sizes.sum(), np.int64)
    corners[first[label[alone]][:, None] + np.arange(3)] = triangles[alone]
    for patch, loop in loops.items():
        corners[first[patch] : first[patch] + len(loop)] = loop
    return corners, sizes


def _walk(patches: list[int], starts: list[int], ends: list[int]) -> dict[int, list[int]]:
    """Follows each patch's edges, given patch by patch, from its first edge on."""
    after: dict[int, dict[int, int]] = {}
    for patch, start, end in zip(patches, starts, ends, strict=True):
        after.setdefault(patch, {})[start] = end
    loops = {}
    for patch, following in after.items():
        first = corner = next(iter(following))
        loop = [first]
        while (corner := following[corner]) != first and len(loop) <= len(following):
            loop.append(corner)
        loops[patch] = loop
    return loops
