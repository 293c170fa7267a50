"""Bodies made on the device: mass and support points of padded meshes, many at once.

The host reads, welds and scales; sums over triangles and the search for support points run in JAX,
in double precision: mass, centre and moments agree with `sim_mjx.mass_properties` to 1e-9 (the same
sums in single precision to 1e-5). A body gets its extreme points along fixed directions and the
corners of its feet instead of its whole hull, and no polygons: contact follows the `skin` rule.
Whole hulls stay the default; how labels agree is in benchmarks/NOTES.md.

Legend: B objects of one batch, N vertices, F triangles (both padded), K support points.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.spatial.transform import Rotation
from jaxtyping import Array, Bool, Float, Int

from sim_mjx.bodies import Provenance, RigidBody
from sim_mjx.directions import support_directions
from sim_mjx.mass_properties import THIN, physical
from sim_mjx.protocol import Protocol
from sim_mjx.surfaces import INERTIA_MODES, Surface

MAX_POINTS = 256
# Vertices of a mesh; a mesh has room for twice as many triangles. Each is one program.
BUCKETS = (512, 2048, 8192, 32768, 131072)
# Vertices of a batch.
_BATCH_VERTICES = 2**19
# The share of the support points that are corners of the feet, and how high feet reach (in object
# sizes).
_FOOT_SHARE = 4
_FOOT_HEIGHT = 1e-3
_CHUNK = 32  # directions looked along at once


class Padded(NamedTuple):
    """Meshes of one bucket: vertices repeat the first one, triangles are (0, 0, 0)."""

    vertices: Float[np.ndarray, "B N 3"]
    triangles: Int[np.ndarray, "B F 3"]
    faces: Int[np.ndarray, " B"]


class Masses(NamedTuple):
    """Of unit density, double precision; `fault` where two triangles run along an edge alike."""

    volume: Float[Array, " B"]
    com: Float[Array, "B 3"]
    tensor: Float[Array, "B 3 3"]
    fault: Bool[Array, " B"]


def bodies_on_device(
    surfaces: Sequence[Surface], protocol: Protocol, *, max_points: int = MAX_POINTS
) -> Iterator[tuple[list[int], RigidBody]]:
    """Makes the bodies of surfaces, batch by batch.

    Args:
        surfaces: made for this protocol, see `surfaces.surface_of`.
        protocol: `inertia` is `legacy`, `exact` or `convex`.
        max_points: support points of a body.

    Yields:
        Positions among `surfaces`, and their bodies. Positions that never come have to be made by
        `meshes.body_from_triangles`: surfaces that are too large, flat, or whose mode fails.

    Raises:
        ValueError: another inertia mode.
    """
    if protocol.inertia not in INERTIA_MODES:
        raise ValueError(f"protocol.inertia: {protocol.inertia!r} is not made on the device")
    groups: dict[int, list[int]] = {}
    for index, one in enumerate(surfaces):
        fits = (n for n in BUCKETS if len(one.vertices) <= n and len(one.triangles) <= 2 * n)
        if bucket := next(fits, None):
            groups.setdefault(bucket, []).append(index)
    for bucket, members in groups.items():
        size = max(1, _BATCH_VERTICES // bucket)
        for begin in range(0, len(members), size):
            part = members[begin : begin + size]
            padded = pad([surfaces[i] for i in part], bucket, size)
            yield _batch([surfaces[i] for i in part], part, padded, protocol, max_points)


def _batch(
    surfaces: list[Surface], index: list[int], padded: Padded, protocol: Protocol, points: int
) -> tuple[list[int], RigidBody]:
    with jax.enable_x64(True):
        mass = mass_integrals(padded, protocol.inertia == "legacy")
        body = jax.device_get(_bodies(padded.vertices, mass, protocol.density, points))
        volume, fault = (np.asarray(leaf)[: len(index)] for leaf in (mass.volume, mass.fault))
    box = np.array([np.prod(np.ptp(one.vertices, axis=0)) for one in surfaces])
    good = (volume > THIN * box) & physical(body[3][: len(index)])
    if protocol.inertia == "exact":
        good &= ~fault
    kept = np.flatnonzero(good)
    provenance = tuple(
        Provenance(
            source=surfaces[k].source,
            sha256=surfaces[k].sha256,
            inertia=protocol.inertia,
            hull_points=points,
            volume=float(volume[k]),
        )
        for k in kept
    )
    support, total, com, moments, quaternion = (leaf[kept] for leaf in body)
    made = RigidBody(support, total, com, moments, quaternion, None, provenance)
    return [index[k] for k in kept], made


def pad(surfaces: Sequence[Surface], bucket: int, size: int) -> Padded:
    """One batch of `size` surfaces of `bucket` vertices; missing ones repeat the first."""
    vertices = np.empty((size, bucket, 3), np.float32)
    triangles = np.zeros((size, 2 * bucket, 3), np.int32)
    faces = np.zeros(size, np.int32)
    for k in range(size):
        points, corners, *_ = surfaces[k if k < len(surfaces) else 0]
        vertices[k, : len(points)], vertices[k, len(points) :] = points, points[0]
        triangles[k, : len(corners)], faces[k] = corners, len(corners)
    return Padded(vertices, triangles, faces)


@functools.partial(jax.jit, static_argnums=1)
def mass_integrals(meshes: Padded, absolute: bool) -> Masses:
    """Volume, centre of mass, inertia tensor about it, and winding faults.

    Double precision needs 64-bit types to be enabled where it is called.

    Args:
        meshes: one batch.
        absolute: volumes without their sign, as `legacy` has them.
    """
    return jax.vmap(functools.partial(_integrals, absolute))(*meshes)


def _integrals(absolute: bool, vertices, triangles, faces) -> Masses:
    vertices = vertices.astype(jnp.result_type(float))
    corners = vertices[triangles]
    cross = jnp.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = jnp.linalg.norm(cross, axis=-1)
    apex = area @ corners.mean(axis=1) / area.sum()

    def volumes(corners):
        share = (corners[:, 0] * cross).sum(axis=-1) / 6
        return jnp.abs(share) if absolute else share

    share = volumes(corners - apex)
    com = apex + 0.75 * (share @ (corners - apex).mean(axis=1)) / share.sum()
    corners = corners - com
    share = volumes(corners)
    total = corners.sum(axis=1)
    high = jax.lax.Precision.HIGHEST
    second = jnp.einsum("f,fki,fkj->ij", share, corners, corners, precision=high)
    second += jnp.einsum("f,fi,fj->ij", share, total, total, precision=high)
    tensor = (jnp.trace(second) * jnp.eye(3) - second) / 20
    return Masses(share.sum(), com, tensor, _winding_fault(triangles, faces, len(vertices)))


def _winding_fault(triangles, faces, count: int) -> Bool[Array, ""]:
    """Whether two triangles run along one edge in the same direction."""
    edges = triangles.astype(jnp.result_type(int)) * count + jnp.roll(triangles, -1, axis=1)
    unused = jnp.arange(len(triangles))[:, None] >= faces
    single = triangles == jnp.roll(triangles, -1, axis=1)
    own = -1 - jnp.arange(edges.size).reshape(edges.shape)  # equal to nothing
    edges = jnp.sort(jnp.where(unused | single, own, edges).ravel())
    return (edges[1:] == edges[:-1]).any()


@functools.partial(jax.jit, static_argnums=3)
def _bodies(vertices, mass: Masses, density: float, points: int) -> tuple[Array, ...]:
    """Points, mass, centre, moments and their quaternion, as `RigidBody` has them."""
    moments, axes = jnp.linalg.eigh(density * mass.tensor)
    moments, axes = moments[:, ::-1], axes[:, :, ::-1]
    axes = axes.at[:, :, 2].multiply(jnp.sign(jnp.linalg.det(axes))[:, None])
    quaternion = jax.vmap(lambda m: Rotation.from_matrix(m).as_quat(canonical=True))(axes)
    chosen = jax.vmap(functools.partial(support_points, count=points))(vertices)
    arms = jnp.take_along_axis(vertices, chosen[:, :, None], axis=1) - mass.com[:, None]
    local = jnp.einsum("bki,bij->bkj", arms, axes, precision=jax.lax.Precision.HIGHEST)
    return (
        local.astype(jnp.float32),
        density * mass.volume,
        mass.com,
        moments,
        quaternion[:, jnp.array([3, 0, 1, 2])],
    )


def support_points(vertices: Float[Array, "N 3"], count: int) -> Int[Array, " K"]:
    """Indices of vertices that stand for the hull: extreme ones, and corners of the feet.

    Args:
        vertices: upright, padded by repeating real ones.
        count: how many; several directions may have the same extreme vertex.
    """
    around = count // _FOOT_SHARE
    directions = jnp.asarray(support_directions(count - around))
    angle = 2 * np.pi * np.arange(around) / around
    level = jnp.asarray(np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1).astype(np.float32))
    height = vertices[:, 2]
    size = (vertices.max(axis=0) - vertices.min(axis=0)).max()
    foot = height <= height.min() + _FOOT_HEIGHT * size

    def extreme(direction):
        reach = (vertices * direction[:3]).sum(axis=-1)
        return jnp.where(foot | (direction[3] == 0), reach, -jnp.inf).argmax()

    flagged = jnp.concatenate(
        [jnp.pad(directions, ((0, 0), (0, 1))), jnp.pad(level, ((0, 0), (0, 1)), constant_values=1)]
    )
    return jax.lax.map(extreme, flagged, batch_size=_CHUNK)
