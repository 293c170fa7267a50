"""Mass, centre of mass and inertia of a triangle mesh, as MuJoCo's compiler computes them.

The solid is summed from tetrahedra between each triangle and the surface's area centroid:
  legacy  absolute volumes; MuJoCo's default, over-counts concave and nested shapes, never fails
  exact   signed volumes; right for closed, consistently wound surfaces
  convex  exact, on the convex hull

Legend: N vertices, F triangles.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from sim_mjx.bodies import BodyError
from sim_mjx.hull import Hull
from sim_mjx.protocol import InertiaMode

# Less volume than this share of the bounding box's is a shell or a plate, not a solid.
_THIN = 1e-9


@dataclasses.dataclass(frozen=True)
class MassProperties:
    """Of unit density.

    Attributes:
        volume: m^3.
        com: centre of mass, m.
        tensor: inertia tensor about the centre of mass, m^5.
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
            volume, com, tensor = _integrate(single, triangles, absolute=mode == "legacy")
            if volume > _THIN * box:
                return MassProperties(volume, com, tensor, mode)
            fallback = "negative_volume" if volume < -_THIN * box else "no_volume"
    corners = hull.vertices.astype(np.float32).astype(np.float64)
    volume, com, tensor = _integrate(corners, hull.triangles, absolute=False)
    if not volume > _THIN * box:
        raise BodyError("flat", "the hull has no volume")
    return MassProperties(volume, com, tensor, "convex", fallback)


def winding_fault(triangles: Int[np.ndarray, "F 3"]) -> str | None:
    """`mixed_winding` if two triangles run along one edge in the same direction."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = edges[edges[:, 0] != edges[:, 1]]
    return "mixed_winding" if len(np.unique(edges, axis=0)) < len(edges) else None


def _integrate(
    vertices: Float[np.ndarray, "N 3"], triangles: Int[np.ndarray, "F 3"], absolute: bool
) -> tuple[float, Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
    """Volume, centre of mass and inertia tensor about it."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    area = 0.5 * np.linalg.norm(cross, axis=1)
    if not area.sum() > 0:
        return 0.0, np.zeros(3), np.zeros((3, 3))
    apex = area @ ((a + b + c) / 3) / area.sum()
    a, b, c = a - apex, b - apex, c - apex
    share = np.einsum("fi,fi->f", a, cross) / 6
    if absolute:
        share = np.abs(share)
    volume = float(share.sum())
    if volume == 0.0:
        return 0.0, apex, np.zeros((3, 3))
    total = a + b + c
    com = share @ (total / 4) / volume
    # Second moments of a tetrahedron with one corner at the apex: (sum p p^T + s s^T) / 20.
    second = np.einsum("f,fi,fj->ij", share, total, total)
    for corner in (a, b, c):
        second += np.einsum("f,fi,fj->ij", share, corner, corner)
    covariance = second / 20 - volume * np.outer(com, com)
    tensor = np.trace(covariance) * np.eye(3) - covariance
    return volume, com + apex, tensor
