"""Bodies from occupancy on the device: fill, mass and support points of many grids at once.

The same bodies as `sim_mjx.occupancy` makes on the host, in JAX: what the device gets are the
logits, which it mostly holds already, and what leaves it are 256 points and ten numbers an object.
Only the corners of rough feet are found otherwise, since a hull is no program of fixed shape: by
many directions among the lowest points instead of by qhull.

Legend: B objects of one batch, R grid resolution, M candidates, D directions, K support points.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sim_mjx import occupancy, rotations
from sim_mjx.bodies import Provenance, RigidBody, concatenate
from sim_mjx.directions import support_directions

# Slopes of the directions that look for corners of the feet; half of a right angle is 1.
_FOOT_SLOPES = tuple(np.geomspace(1e-3, 1.7, 16).tolist())
_FOOT_TURNS = 64  # directions of a slope
_CHUNK = 16  # directions looked along at once
_BATCH_VOXELS = {"cpu": 2**21}
_ACCELERATOR_VOXELS = 2**24


class Grids(NamedTuple):
    """What a batch of grids comes to.

    Attributes:
        points: support points, in the grid's frame, m.
        volume: of the filled voxels, m^3.
        com: centre of mass.
        tensor: inertia about it, of unit mass.
        voxels: solid ones, filled interior included.
        candidates: points of the surface that the support points were chosen from.
        finite: whether every logit is.
        flat: whether the candidates span no volume.
    """

    points: Any  # (B, K, 3); numpy once it has left the device, like the rest
    volume: Any  # (B,)
    com: Any  # (B, 3)
    tensor: Any  # (B, 3, 3)
    voxels: Any  # (B,)
    candidates: Any  # (B,)
    finite: Any  # (B,)
    flat: Any  # (B,)


def bodies_from_occupancy(
    logits,
    *,
    max_points: int = occupancy.MAX_POINTS,
    saturation: float = occupancy.SATURATION,
) -> tuple[RigidBody, list[str | None]]:
    """Makes one body an object where the logits are: on their accelerator, else on the host.

    See `occupancy.bodies_from_occupancy` for arguments and result. A CPU does it faster with scipy.
    """
    away = isinstance(logits, jax.Array) and next(iter(logits.devices())).platform != "cpu"
    make = bodies_on_device if away else occupancy.bodies_from_occupancy
    return make(logits, max_points=max_points, saturation=saturation)


def bodies_on_device(
    logits,
    *,
    max_points: int = occupancy.MAX_POINTS,
    saturation: float = occupancy.SATURATION,
    batch: int | None = None,
) -> tuple[RigidBody, list[str | None]]:
    """Makes one body an object; see `occupancy.bodies_from_occupancy`.

    Args:
        logits: (B, R, R, R) or (B, 1, R, R, R); JAX arrays stay where they are.
        max_points: support points an object.
        saturation: logits are clipped to +- this before the surface is interpolated.
        batch: objects worked on at once, a shape of the program; by default what fits.

    Returns:
        The batch, and per object None or the reason why its body is a placeholder. Components are
        not counted.

    Raises:
        ValueError: if the array is not a batch of cubes.
    """
    array = occupancy.as_cubes(logits, jnp)
    size = batch or _batch_size(array.shape[1])
    made = []
    for first in range(0, len(array), size):
        part = array[first : first + size]
        missing = size - len(part)
        part = jnp.pad(part, ((0, missing), *[(0, 0)] * 3), constant_values=1.0)
        grids = jax.device_get(measure(part, max_points, saturation))
        made.append(jax.tree.map(lambda leaf: leaf[: size - missing], grids))  # noqa: B023
    return _bodies(jax.tree.map(lambda *leaves: np.concatenate(leaves), *made), max_points)


def _batch_size(resolution: int) -> int:
    voxels = _BATCH_VOXELS.get(jax.default_backend(), _ACCELERATOR_VOXELS)
    return max(1, voxels // resolution**3)


def _bodies(grids: Grids, max_points: int) -> tuple[RigidBody, list[str | None]]:
    """The last step, on the host: principal axes of a 3 x 3 matrix an object."""
    reasons = [_reason(*of) for of in zip(grids.finite, grids.voxels, grids.flat, strict=True)]
    good = np.flatnonzero([reason is None for reason in reasons])
    bodies = [occupancy.placeholder(max_points)]
    if len(good):
        one = Grids(*(leaf[good] for leaf in grids))
        mass = occupancy.DENSITY * one.volume.astype(np.float64)
        com = one.com.astype(np.float64)
        tensor = mass[:, None, None] * one.tensor.astype(np.float64)
        moments, quaternion = rotations.principal_axes(tensor)
        points = (one.points - com[:, None]) @ rotations.to_matrix(quaternion)
        provenance = tuple(
            Provenance("occupancy", inertia="voxel", hull_points=int(count), volume=float(volume))
            for count, volume in zip(one.candidates, one.volume, strict=True)
        )
        local = points.astype(np.float32)
        bodies.append(RigidBody(local, mass, com, moments, quaternion, None, provenance))
    order = np.zeros(len(reasons), int)
    order[good] = 1 + np.arange(len(good))
    return concatenate(bodies)[order], reasons


def _reason(finite: bool, voxels: int, flat: bool) -> str | None:
    if not finite:
        return "nan_logits"
    if not voxels:
        return "empty"
    return "flat" if flat else None


@functools.partial(jax.jit, static_argnames="max_points")
def measure(logits: Float[Array, "B R R R"], max_points: int, saturation: float) -> Grids:
    """Fills, weighs and reduces a batch of grids."""
    one = functools.partial(_measure, max_points=max_points, saturation=saturation)
    return jax.vmap(one)(logits.astype(jnp.float32))


def _measure(logits: Float[Array, "R R R"], max_points: int, saturation: float) -> Grids:
    voxel = 1.0 / logits.shape[0]
    finite = jnp.isfinite(logits).all()
    solid = fill_interior(logits > 0)
    filled = coverage(logits, solid)
    com, tensor = moments(filled)
    candidates, real = surface_candidates(jnp.clip(logits, -saturation, saturation), solid)
    low = jnp.where(real[:, None], candidates, jnp.inf).min(axis=0)
    high = jnp.where(real[:, None], candidates, -jnp.inf).max(axis=0)
    chosen = support_indices(candidates, real, max_points, voxel)
    return Grids(
        points=candidates[chosen],
        volume=filled.sum() * voxel**3,
        com=com,
        tensor=tensor,
        voxels=solid.sum(),
        candidates=real.sum(),
        finite=finite,
        flat=(high - low).min() < occupancy.FLAT,
    )


def fill_interior(occupied: Bool[Array, "R R R"]) -> Bool[Array, "R R R"]:
    """Solid voxels: all that the border does not reach through empty voxels (6-connected).

    A sweep carries "outside" along whole runs of empty voxels, both ways on each axis, so that the
    number of rounds is that of the turns in the longest way out, not of its voxels.
    """
    empty = ~occupied
    border = jnp.zeros(occupied.shape, bool)
    for axis in range(3):
        edge = jnp.zeros(occupied.shape[axis], bool).at[jnp.array([0, -1])].set(True)
        border |= jnp.expand_dims(edge, [a for a in range(3) if a != axis])

    def spread(state):
        outside, _ = state
        wider = outside
        for axis in range(3):
            for reverse in (False, True):
                wider = _carried(empty, wider, axis, reverse)
        return wider, (wider != outside).any()

    start = (empty & border, jnp.array(True))
    outside, _ = jax.lax.while_loop(lambda state: state[1], spread, start)
    return ~outside


def _carried(empty, outside, axis: int, reverse: bool) -> Bool[Array, "R R R"]:
    """`outside` spread along one axis through voxels that are empty."""
    place = jax.lax.broadcasted_iota(jnp.int32, empty.shape, axis)
    if reverse:
        place = empty.shape[axis] - 1 - place

    def latest(where):
        return jax.lax.cummax(jnp.where(where, place, -1), axis=axis, reverse=reverse)

    # Outside came after the last voxel that is not empty.
    return empty & (latest(outside) > latest(~empty))


def coverage(logits: Float[Array, "R R R"], solid: Bool[Array, "R R R"]) -> Float[Array, "R R R"]:
    """How much of each voxel is solid, 0..1; see `occupancy.coverage`."""
    tiny = np.finfo(np.float32).tiny
    slope = jnp.sqrt(sum(g * g for g in jnp.gradient(logits))) + tiny
    share = jnp.clip(0.5 + logits / slope, 0.0, 1.0)
    inner = _neighbours(solid, jnp.logical_and, outside=False)
    outer = _neighbours(solid, jnp.logical_or, outside=False)
    return jnp.where(inner, 1.0, jnp.where(outer, share, 0.0))


def _neighbours(solid, combine, outside: bool) -> Bool[Array, "R R R"]:
    """Each voxel combined with its six neighbours."""
    padded, found = jnp.pad(solid, 1, constant_values=outside), solid
    middle = slice(1, -1)
    for axis in range(3):
        for side in (slice(None, -2), slice(2, None)):
            index = [middle] * 3
            index[axis] = side
            found = combine(found, padded[tuple(index)])
    return found


def moments(filled: Float[Array, "R R R"]) -> tuple[Float[Array, " 3"], Float[Array, "3 3"]]:
    """Centre of mass and the inertia tensor about it of a uniform solid of unit mass."""
    resolution = filled.shape[0]
    axis = (jnp.arange(resolution) + 0.5) / resolution - 0.5
    total = jnp.maximum(filled.sum(), np.finfo(np.float32).tiny)
    single = [filled.sum(axis=tuple(a for a in range(3) if a != k)) / total for k in range(3)]
    com = jnp.stack([(line * axis).sum() for line in single])
    # About the centre from the start: single precision would lose it in the difference of squares.
    arms = [axis - com[k] for k in range(3)]
    diagonal = [(line * arm * arm).sum() for line, arm in zip(single, arms, strict=True)]

    def product(i, j):
        other = 3 - i - j
        plane = filled.sum(axis=other) / total
        return (plane * arms[i][:, None] * arms[j]).sum()

    xy, xz, yz = product(0, 1), product(0, 2), product(1, 2)
    covariance = jnp.array([[diagonal[0], xy, xz], [xy, diagonal[1], yz], [xz, yz, diagonal[2]]])
    covariance += jnp.eye(3) / (12 * resolution**2)
    return com, jnp.trace(covariance) * jnp.eye(3) - covariance


def surface_candidates(
    logits: Float[Array, "R R R"], solid: Bool[Array, "R R R"]
) -> tuple[Float[Array, "M 3"], Bool[Array, " M"]]:
    """First and last surface crossing on every grid line, and which lines have any."""
    resolution = solid.shape[0]
    places = jnp.stack(jnp.meshgrid(*[jnp.arange(resolution)] * 2, indexing="ij"), axis=-1)
    places = places.reshape(-1, 2).astype(jnp.float32)
    found, real = [], []
    for axis in range(3):
        mask = jnp.moveaxis(solid, axis, 0).reshape(resolution, -1)
        values = jnp.moveaxis(logits, axis, 0).reshape(resolution, -1)
        hit = mask.any(axis=0)
        last = resolution - 1 - mask[::-1].argmax(axis=0)
        for sign, index in ((-1, mask.argmax(axis=0)), (1, last)):
            inside = jnp.take_along_axis(values, index[None], axis=0)[0]
            beyond = index + sign
            within = (beyond >= 0) & (beyond < resolution)
            outside = jnp.take_along_axis(values, jnp.clip(beyond, 0, resolution - 1)[None], axis=0)
            # The surface leaves the grid half a voxel past its last sample.
            outside = jnp.where(within, outside[0], -inside)
            crossing = index + sign * inside / (inside - outside)
            found.append(jnp.insert(places, axis, crossing, axis=1))
            real.append(hit)
    candidates = (jnp.concatenate(found) + 0.5) / resolution - 0.5
    real = jnp.concatenate(real)
    # Lines without a crossing repeat one that has, so that no number is left undefined.
    return jnp.where(real[:, None], candidates, candidates[real.argmax()]), real


def support_indices(
    candidates: Float[Array, "M 3"], real: Bool[Array, " M"], count: int, voxel: float
) -> Int[Array, " K"]:
    """Indices of `count` candidates that stand for all: extreme ones, then corners of the feet."""
    height = candidates[:, 2]
    low = height < height.min() + occupancy.FOOT_LAYERS * voxel
    extreme = _extreme(candidates, jnp.asarray(support_directions(count)), real)
    feet = _extreme(candidates, jnp.asarray(_foot_directions()), real & low)
    both = jnp.concatenate([extreme, feet])
    # Each index once, where it came first.
    by_index = jnp.argsort(both, stable=True)
    again = jnp.concatenate([jnp.zeros(1, bool), both[by_index][1:] == both[by_index][:-1]])
    repeated = jnp.zeros(len(both), bool).at[by_index].set(again)
    order = jnp.argsort(repeated, stable=True)[:count]
    return jnp.where(repeated[order], both[0], both[order])


def _extreme(candidates, directions, among) -> Int[Array, " D"]:
    """The first candidate that reaches furthest along each direction."""
    last = len(candidates)

    def along(direction):
        reach = jnp.dot(candidates, direction, precision=jax.lax.Precision.HIGHEST)
        reach = jnp.where(among, reach, -jnp.inf)
        # Not argmax, which CPUs do not vectorise.
        return jnp.where(reach == reach.max(), jnp.arange(last), last - 1).min()

    return jax.lax.map(along, directions, batch_size=_CHUNK)


@functools.cache
def _foot_directions() -> Float[np.ndarray, "D 3"]:
    """Downward directions of sixteen slopes, each ring turned against the one before."""
    rings = []
    for number, slope in enumerate(_FOOT_SLOPES):
        angle = 2 * np.pi * (np.arange(_FOOT_TURNS) + number / len(_FOOT_SLOPES)) / _FOOT_TURNS
        flat = slope * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        rings.append(np.concatenate([flat, -np.ones((_FOOT_TURNS, 1))], axis=1))
    directions = np.concatenate(rings)
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
