"""Mass, centre of mass and inertia of a triangle mesh; all but `voxel` as MuJoCo's compiler does.

The solid is summed from tetrahedra between each triangle and the surface's area centroid:
  legacy  absolute volumes; MuJoCo's default, over-counts concave and nested shapes, never fails
  exact   signed volumes; right for closed, consistently wound surfaces
  convex  exact, on the convex hull
Or not from tetrahedra:
  shell   the triangles themselves, of unit thickness
  voxel   what the surface encloses, filled, on a grid: what a solid print weighs
A mode that fails on a mesh is replaced by `convex`, and the reason is kept.

Legend: N vertices, F triangles.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from sim_mjx.bodies import BodyError
from sim_mjx.hull import Hull
from sim_mjx.protocol import InertiaMode
from sim_mjx.solid import solid_integrals

# Less volume than this share of the bounding box's is a shell or a plate, not a solid.
THIN = 1e-9
# Moments of a real body: none is zero (a needle's rounds to it), none exceeds the sum of the others
# (a plate's equals it).
_NEEDLE, _PLATE = 1e-13, 1e-9

Integrals = tuple[float, Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]


@dataclasses.dataclass(frozen=True)
class MassProperties:
    """Of unit density.

    Attributes:
        volume: m^3; for `shell` m^2, the area.
        com: centre of mass, m.
        tensor: inertia tensor about the centre of mass, m^5 (`shell`: m^4).
        mode: how the numbers were made.
        fallback: why `mode` is not what was asked for, or None.
    """

    volume: float
    com: Float[np.ndarray, " 3"]
    tensor: Float[np.ndarray, "3 3"]
    mode: str
    fallback: str | None = None


def mass_properties(
    vertices: Float[np.ndarray, "N 3"],
    triangles: Int[np.ndarray, "F 3"],
    hull: Hull,
    mode: InertiaMode,
) -> MassProperties:
    """Mass properties in the wanted mode, or `convex` with the reason where that one fails.

    Raises:
        BodyError: `flat` if even the hull has no volume.
    """
    box = float(np.prod(np.ptp(vertices, axis=0)))
    # MuJoCo stores vertices in single precision before it integrates.
    single = vertices.astype(np.float32).astype(np.float64)
    fallback = None
    if mode != "convex":
        fallback = winding_fault(triangles) if mode == "exact" else None
        if fallback is None:
            integrals = _integrals(single, triangles, mode)
            fallback = _fault(*integrals, box)
            if fallback is None:
                return MassProperties(*integrals, mode)
    corners = hull.vertices.astype(np.float32).astype(np.float64)
    integrals = _integrals(corners, hull.triangles, "convex")
    if _fault(*integrals, box):
        raise BodyError("flat", "the hull has no volume")
    return MassProperties(*integrals, "convex", fallback)


def _integrals(
    vertices: Float[np.ndarray, "N 3"], triangles: Int[np.ndarray, "F 3"], mode: InertiaMode
) -> Integrals:
    if mode == "shell":
        return _integrate_shell(vertices, triangles)
    if mode == "voxel":
        return solid_integrals(vertices, triangles)
    return _integrate(vertices, triangles, absolute=mode == "legacy")


def _fault(
    volume: float, com: Float[np.ndarray, " 3"], tensor: Float[np.ndarray, "3 3"], box: float
) -> str | None:
    """Why no body can have these integrals, or None."""
    if not np.isfinite(volume) or not np.isfinite(tensor).all() or not np.isfinite(com).all():
        return "no_volume"
    if not volume > THIN * box:
        return "negative_volume" if volume < -THIN * box else "no_volume"
    # Signed volumes of a surface that is closed nowhere can add up to anything.
    return None if physical(np.linalg.eigvalsh(tensor)) else "no_inertia"


def physical(moments: Float[np.ndarray, "*batch 3"]) -> Bool[np.ndarray, "*batch"]:
    """Whether a body can have these principal moments, which MuJoCo insists on."""
    small, middle, large = np.moveaxis(np.sort(moments, axis=-1), -1, 0)
    return (small > _NEEDLE * large) & (small + middle > (1 - _PLATE) * large)


def winding_fault(triangles: Int[np.ndarray, "F 3"]) -> str | None:
    """`mixed_winding` if two triangles run along one edge in the same direction."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = edges[edges[:, 0] != edges[:, 1]]
    return "mixed_winding" if len(np.unique(edges, axis=0)) < len(edges) else None


def _integrate(
    vertices: Float[np.ndarray, "N 3"], triangles: Int[np.ndarray, "F 3"], absolute: bool
) -> Integrals:
    """Volume, centre of mass, and inertia tensor about it.

    In two passes, as MuJoCo does: absolute volumes depend on the apex of the tetrahedra, and only
    the second pass, with the apex at the centre of mass, counts for volume and inertia.
    """
    a, b, c = (vertices.take(triangles[:, k], axis=0) for k in range(3))
    cross = _cross(b - a, c - a)
    x, y, z = cross.T
    area = 0.5 * np.sqrt(x * x + y * y + z * z)
    if not area.sum() > 0:
        return 0.0, np.zeros(3), np.zeros((3, 3))
    apex = area @ ((a + b + c) / 3) / area.sum()
    a, b, c = a - apex, b - apex, c - apex
    share = _volumes(a, cross, absolute)
    if share.sum() == 0.0:
        return 0.0, apex, np.zeros((3, 3))
    com = apex + share @ (0.75 * ((a + b + c) / 3)) / share.sum()
    corners = vertices.take(triangles, axis=0) - com
    share = _volumes(corners[:, 0], cross, absolute)
    # Second moments of a tetrahedron with one corner at the origin: (sum p p^T + s s^T) / 20.
    total = corners[:, 0] + corners[:, 1] + corners[:, 2]
    weighted = (share[:, None, None] * corners).reshape(-1, 3)
    second = np.einsum("ni,nj->ij", weighted, corners.reshape(-1, 3))
    second += np.einsum("ni,nj->ij", share[:, None] * total, total)
    tensor = (np.trace(second) * np.eye(3) - second) / 20
    return float(share.sum()), com, tensor


def _integrate_shell(
    vertices: Float[np.ndarray, "N 3"], triangles: Int[np.ndarray, "F 3"]
) -> Integrals:
    """Area, its centre, and inertia tensor about it, of a sheet of unit mass per area."""
    corners = vertices.take(triangles, axis=0)
    cross = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = 0.5 * np.linalg.norm(cross, axis=1)
    com = area @ corners.mean(axis=1) / area.sum()
    corners -= com
    # Second moments of a triangle: (sum p p^T + s s^T) / 12.
    total = corners.sum(axis=1)
    second = np.einsum("f,fki,fkj->ij", area, corners, corners)
    second += np.einsum("f,fi,fj->ij", area, total, total)
    return float(area.sum()), com, (np.trace(second) * np.eye(3) - second) / 12


def _cross(
    first: Float[np.ndarray, "F 3"], second: Float[np.ndarray, "F 3"]
) -> Float[np.ndarray, "F 3"]:
    """As np.cross, in half its time."""
    (x, y, z), (u, v, w) = np.ascontiguousarray(first.T), np.ascontiguousarray(second.T)
    product = np.empty_like(first)
    product[:, 0], product[:, 1], product[:, 2] = y * w - z * v, z * u - x * w, x * v - y * u
    return product


def _volumes(
    corner: Float[np.ndarray, "F 3"], cross: Float[np.ndarray, "F 3"], absolute: bool
) -> Float[np.ndarray, " F"]:
    """Volumes of the tetrahedra between each triangle, known by one corner, and the origin."""
    share = np.einsum("fi,fi->f", corner, cross) / 6
    return np.abs(share) if absolute else share
