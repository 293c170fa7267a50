"""Rigid bodies from occupancy logits, such as a structure decoder's output.

The occupied voxels are a shell; the object is solid. So the interior is filled, mass comes from the
filled voxels, and the surface lies where the logits, saturated at +-1, cross zero on the edges of
the voxel grid. A decoder trained with cross-entropy says how sure it is, not how far the surface
is: raw logits of 4 and 9 in neighbouring voxels of one flat sole would make it uneven by a fifth of
a voxel, and 94 % of faithful reconstructions of small-footed objects fall for that alone (none of
them with saturation). The grid spans [-0.5, 0.5] on each axis, z up, index order [x, y, z].

Only the convex hull can touch the ground. A hull vertex on a grid line is the line's first or last
crossing, which leaves a few hundred candidates; of these we keep the extreme ones along a fixed set
of directions, dense around "down", and the corners of the feet.

Legend: B objects, R grid resolution, M candidates, D directions (= support points).
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from sim_mjx import rotations
from sim_mjx.bodies import BodyError, Provenance, RigidBody, concatenate
from sim_mjx.directions import support_directions
from sim_mjx.protocol import Protocol

DENSITY = 1000.0  # kg/m^3; it cancels in every label
MAX_POINTS = 256
SATURATION = Protocol.saturation
# Feet are what lies within this many voxels of the lowest point; faces count as their underside
# where the normal's z is below this.
FOOT_LAYERS = 1.5
_DOWNWARD = -0.5
_SMALL_PRODUCT = 2**18  # multiply-adds
# Below this extent (m) along an axis the points span no volume worth simulating.
FLAT = 1e-4


def bodies_from_occupancy(
    logits, *, max_points: int = MAX_POINTS, saturation: float = SATURATION
) -> tuple[RigidBody, list[str | None]]:
    """Makes one body an object, whatever the logits hold.

    Args:
        logits: (B, R, R, R) or (B, 1, R, R, R), numpy or JAX; occupied where positive.
        max_points: support points an object; one value is one shape bucket.
        saturation: logits are clipped to +- this before the surface is interpolated; infinity
            trusts them as distances.

    Returns:
        The batch, and per object None or the reason why its body is a placeholder (`nan_logits`,
        `empty`, `flat`).

    Raises:
        ValueError: if the array is not a batch of cubes.
    """
    bodies, reasons = [], []
    for volume in as_cubes(logits, np):
        try:
            bodies.append(_body(volume, max_points, saturation))
            reasons.append(None)
        except BodyError as error:
            bodies.append(placeholder(max_points))
            reasons.append(error.reason)
    return concatenate(bodies), reasons


def as_cubes(logits, xp: ModuleType):
    """Logits as an array (B, R, R, R) of numpy or jax.numpy, single precision.

    Raises:
        ValueError: if the array is not a batch of cubes.
    """
    array = xp.asarray(logits, xp.float32)
    if array.ndim == 5 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 4 or len(set(array.shape[1:])) != 1:
        raise ValueError(
            f"occupancy logits: expected (B, R, R, R) or (B, 1, R, R, R), got {np.shape(logits)}"
        )
    if not len(array):
        raise ValueError("occupancy logits: expected at least one object")
    return array


def placeholder(max_points: int = MAX_POINTS) -> RigidBody:
    """A small resting box that stands in for an object without a body."""
    solid = np.full((8, 8, 8), -1.0, np.float32)
    solid[2:6, 2:6, 2:6] = 1.0
    return _body(solid, max_points)


def fill_interior(occupied: Bool[np.ndarray, "R R R"]) -> Bool[np.ndarray, "R R R"]:
    """Solid voxels: all that the border does not reach through empty voxels (6-connected)."""
    padded = np.pad(~occupied, 1, constant_values=True)
    labels = np.zeros(padded.shape, np.int32)
    ndimage.label(padded, output=labels)
    return (labels != labels[0, 0, 0])[1:-1, 1:-1, 1:-1]


def coverage(
    logits: Float[np.ndarray, "R R R"], solid: Bool[np.ndarray, "R R R"]
) -> Float[np.ndarray, "R R R"]:
    """How much of each voxel is solid, 0..1.

    On either side of the surface, logit over slope estimates the distance to it in voxels. Binary
    voxels misplace the centre of mass of slender objects by a fifth of a voxel on median, this by a
    twentieth.
    """
    slope = np.sqrt(sum(g * g for g in np.gradient(logits))) + np.finfo(np.float32).tiny
    with np.errstate(over="ignore"):  # in a wall of one voxel the slope vanishes
        share = np.clip(0.5 + logits / slope, 0.0, 1.0)
    inner = ndimage.binary_erosion(solid)
    outer = ndimage.binary_dilation(solid)
    return np.where(inner, 1.0, np.where(outer, share, 0.0))


def surface_candidates(
    logits: Float[np.ndarray, "R R R"], solid: Bool[np.ndarray, "R R R"]
) -> Float[np.ndarray, "M 3"]:
    """First and last surface crossing on every grid line: a superset of the hull's vertices."""
    resolution = solid.shape[0]
    found = []
    for axis in range(3):
        mask, values = np.moveaxis(solid, axis, 0), np.moveaxis(logits, axis, 0)
        lines = np.nonzero(mask.any(axis=0))
        flipped = resolution - 1 - mask[::-1].argmax(axis=0)
        for sign, index in ((-1, mask.argmax(axis=0)[lines]), (1, flipped[lines])):
            inside = values[(index, *lines)].astype(np.float64)
            beyond = index + sign
            within = (beyond >= 0) & (beyond < resolution)
            # The surface leaves the grid half a voxel past its last sample.
            outside = np.where(
                within, values[(np.clip(beyond, 0, resolution - 1), *lines)], -inside
            )
            crossing = index + sign * inside / (inside - outside)
            coordinates = np.insert(np.stack(lines).astype(np.float64), axis, crossing, axis=0)
            found.append(coordinates.T)
    return (np.concatenate(found) + 0.5) / resolution - 0.5


def support_indices(
    candidates: Float[np.ndarray, "M 3"], count: int, voxel: float
) -> Int[np.ndarray, " D"]:
    """Indices of `count` candidates that stand for all: extreme ones, then corners of the feet.

    Which bumps of a rough foot carry the object can decide its label, and directions alone miss a
    few; they mostly agree on far fewer than `count` points, which leaves room for the rest.
    """
    # Float32 halves the time, and its rounding is far below the finest ring. Small products stay in
    # the cache and below the size at which BLAS wakes threads that other work has to wait for.
    directions, points = support_directions(count), candidates.astype(np.float32).T
    rows = max(1, _SMALL_PRODUCT // points.size)
    parts = (directions[i : i + rows] @ points for i in range(0, count, rows))
    extreme = np.unique(np.concatenate([part.argmax(axis=1) for part in parts]))
    feet = np.setdiff1d(_foot_corners(candidates, voxel), extreme)
    chosen = np.concatenate([extreme, feet])[:count]
    return np.concatenate([chosen, np.full(count - len(chosen), chosen[0])])


def _foot_corners(candidates: Float[np.ndarray, "M 3"], voxel: float) -> Int[np.ndarray, " n"]:
    """Candidates in the lowest layers that are corners of a downward face of their hull."""
    height = candidates[:, 2]
    low = np.flatnonzero(height < height.min() + FOOT_LAYERS * voxel)
    try:
        hull = ConvexHull(candidates[low])
    except (QhullError, ValueError):
        return np.zeros(0, np.int64)  # perfectly flat feet: directions find all corners
    return low[np.unique(hull.simplices[hull.equations[:, 2] < _DOWNWARD])]


def _body(
    logits: Float[np.ndarray, "R R R"], max_points: int, saturation: float = SATURATION
) -> RigidBody:
    if not np.isfinite(logits).all():
        raise BodyError("nan_logits", "occupancy logits are not finite")
    solid = fill_interior(logits > 0)
    if not solid.any():
        raise BodyError("empty", "no occupied voxel")
    candidates = surface_candidates(np.clip(logits, -saturation, saturation), solid)
    if np.ptp(candidates, axis=0).min() < FLAT:
        raise BodyError("flat", "the occupied voxels span no volume")
    filled = coverage(logits, solid)
    com, tensor = _moments(filled)
    voxel = 1.0 / solid.shape[0]
    volume = float(filled.sum()) * voxel**3
    mass = DENSITY * volume
    moments, quaternion = rotations.principal_axes(mass * tensor)
    chosen = candidates[support_indices(candidates, max_points, voxel)]
    points = (chosen - com) @ rotations.to_matrix(quaternion)
    components = ndimage.label(solid, output=np.zeros(solid.shape, np.int32))
    return RigidBody(
        points=points.astype(np.float32)[None],
        mass=np.array([mass]),
        com=com[None],
        inertia=moments[None],
        inertia_quat=quaternion[None],
        provenance=(
            Provenance(
                source="occupancy",
                inertia="voxel",
                hull_points=len(candidates),
                components=int(np.max(components)),
                volume=volume,
            ),
        ),
    )


def _moments(
    filled: Float[np.ndarray, "R R R"],
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
    """Centre of mass and the inertia tensor about it of a uniform solid of unit mass."""
    resolution = filled.shape[0]
    axis = (np.arange(resolution) + 0.5) / resolution - 0.5
    # Pairwise marginals hold all first and second moments.
    total = filled.sum()
    xy, xz, yz = (filled.sum(axis=a) / total for a in (2, 1, 0))
    x, y, z = xy.sum(1), xy.sum(0), xz.sum(0)
    com = np.array([x @ axis, y @ axis, z @ axis])
    second = np.array(
        [
            [x @ axis**2, axis @ xy @ axis, axis @ xz @ axis],
            [axis @ xy @ axis, y @ axis**2, axis @ yz @ axis],
            [axis @ xz @ axis, axis @ yz @ axis, z @ axis**2],
        ]
    )
    covariance = second - np.outer(com, com) + np.eye(3) / (12 * resolution**2)
    return com, np.trace(covariance) * np.eye(3) - covariance
