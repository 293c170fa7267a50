"""Shape buckets: the few static shapes that bodies of any size are padded to.

Legend: K support points, V entries of the polygon table, W entries at one point (the window).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sim_mjx import rotations
from sim_mjx.bodies import HullPolygons, Provenance, RigidBody
from sim_mjx.corners import contact_corners
from sim_mjx.directions import support_directions
from sim_mjx.hull import Hull, convex_hull
from sim_mjx.mass_properties import MassProperties


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One static shape; a run compiles one program a bucket."""

    points: int
    entries: int
    window: int


# A triangulated hull of K points has at most 6K entries. With the bucket of bodies from occupancy
# these are the six programs that a run may compile.
BUCKETS = tuple(Bucket(k, 6 * k, k // 2) for k in (64, 256, 1024, 4096, 16384))


def hull_body(
    hull: Hull, mass: MassProperties, density: float, provenance: Provenance
) -> RigidBody:
    """A batch of one with the hull's vertices and polygons, in the smallest bucket that fits.

    A hull that fits no bucket keeps its extreme vertices along evenly spread directions.
    """
    if len(hull.vertices) > BUCKETS[-1].points:
        hull = _thinned(hull)
    moments, quaternion = rotations.principal_axes(density * mass.tensor)
    axes = rotations.to_matrix(quaternion)
    points = (hull.vertices - mass.com) @ axes
    normals = hull.normals @ axes
    owners, corners, faces = _entries(hull)
    count = np.bincount(owners, minlength=len(points))
    bucket = next(
        (b for b in BUCKETS if len(points) <= b.points and count.max() <= b.window),
        BUCKETS[-1],
    )
    start = np.cumsum(count) - count
    polygons = HullPolygons(
        # Padded points repeat point 0, table and all: the same contact whichever is found first.
        start=padded(start, bucket.points, 0, np.int32),
        count=padded(count, bucket.points, count[0], np.int32),
        normals=padded(normals[faces], bucket.entries, 0.0, np.float32),
        contacts=padded(corners, bucket.entries, 0, np.uint16),
        window=bucket.window,
    )
    return RigidBody(
        points=padded(points, bucket.points, points[0], np.float32),
        mass=np.array([density * mass.volume]),
        com=mass.com[None],
        inertia=moments[None],
        inertia_quat=quaternion[None],
        polygons=polygons,
        provenance=(provenance,),
    )


def padded(values: np.ndarray, length: int, fill, dtype: type) -> np.ndarray:
    """A batch of one, filled up to `length`."""
    batch = np.empty((1, length, *values.shape[1:]), dtype)
    batch[0, : len(values)] = values
    batch[0, len(values) :] = fill
    return batch


def _entries(hull: Hull) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polygon table sorted by point: the point, its contact corners, and the polygon's index."""
    contacts = contact_corners(hull.corners, hull.sizes, hull.vertices)
    faces = np.repeat(np.arange(len(hull.sizes)), hull.sizes)
    # A vertex inside a merged face is a corner of nothing; it touches alone, whichever its normal.
    inner = np.flatnonzero(np.bincount(hull.corners, minlength=len(hull.vertices)) == 0)
    owners = np.concatenate([hull.corners, inner])
    contacts = np.concatenate([contacts, np.repeat(inner[:, None], 4, axis=1)])
    faces = np.concatenate([faces, np.zeros(len(inner), int)])
    order = np.argsort(owners, kind="stable")
    return owners[order], contacts[order], faces[order]


def _thinned(hull: Hull) -> Hull:
    """The hull of the vertices that are extreme along the finest set of directions."""
    directions = support_directions(BUCKETS[-1].points)
    vertices = hull.vertices.astype(np.float32)
    best = np.concatenate(
        [(part @ vertices.T).argmax(axis=1) for part in np.array_split(directions, 256)]
    )
    return convex_hull(hull.vertices[np.unique(best)])
