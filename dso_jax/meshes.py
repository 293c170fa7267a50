"""Occupancy logits -> the closed triangle mesh of the solid that the drop simulates.

Marching cubes of the logits as `sim_mjx.occupancy` reads them: interior filled, saturated, and the
grid's border a surface half a voxel past the last sample. So the mesh stands on exactly the points
that were simulated.

Marching cubes cuts every convex edge of the voxels off: an eighth of a square voxel on an edge,
half of a leg that is one voxel thick, 4 % of a slender object of 32 voxels; thin parts lose more
than thick ones, and the balance changes. Vertices on horizontal grid edges are therefore moved
along them, by a distance that is linear in their place, until the mesh has the volume of the filled
voxels and the simulated body's centre of mass. Those on vertical edges stay: they are the soles,
and with them all that touches the ground.

Legend: R grid resolution, N vertices, F triangles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.optimize import least_squares
from skimage.measure import marching_cubes

from sim_mjx.bodies import BodyError
from sim_mjx.occupancy import SATURATION, coverage, fill_interior

# In voxels. Vertices nearer to a sample than this could fall together in a file's float32.
_NEAREST = 0.01
_ON_GRID = 1e-4  # skimage's vertices are float32
_SHRINK, _GROW = 0.5, 0.53  # Taubin's two steps; with these a round keeps the volume
_CLOSE = 1e-5  # relative change of the move, or of what it leaves wrong, that ends the search


def surface(
    logits: Float[np.ndarray, "R R R"], *, saturation: float = SATURATION, smooth: int = 0
) -> trimesh.Trimesh:
    """The surface of a solid, outward faces, in the grid's frame: [-0.5, 0.5] on each axis, z up.

    Args:
      logits: occupied where positive, index order [x, y, z].
      saturation: as in `sim_mjx.Protocol`; use the one that the object was labelled with.
      smooth: rounds of Taubin's filter over all but the soles. They take the steps of the voxels
        away and move the volume by about a per cent.

    Returns:
      A watertight mesh; unless smoothed, with the volume of the filled voxels.

    Raises:
      BodyError: `nan_logits`, or `empty` if no voxel is occupied.
    """
    if not np.isfinite(logits).all():
        raise BodyError("nan_logits", "occupancy logits are not finite")
    solid = fill_interior(logits > 0)
    if not solid.any():
        raise BodyError("empty", "no occupied voxel")
    field = _field(logits, solid, saturation)
    # Lewiner's variant decides ambiguous cells by products of their samples; saturated ones tie,
    # and two cells then disagree on their common face. The plain table never does.
    found, triangles, _, _ = marching_cubes(
        field, 0.0, gradient_direction="ascent", method="lorensen"
    )
    com = np.array(ndimage.center_of_mass(coverage(logits, solid))) + 1  # the field is wider
    vertices = _widen(found.astype(np.float64), triangles, field > 0, float(solid.sum()), com)
    mesh = trimesh.Trimesh((vertices - 0.5) / len(solid) - 0.5, triangles, process=False)
    return _smooth(mesh, smooth, 1 / len(solid)) if smooth else mesh


def _field(
    logits: Float[np.ndarray, "R R R"], solid: Bool[np.ndarray, "R R R"], saturation: float
) -> Float[np.ndarray, "R+2 R+2 R+2"]:
    """Saturated logits, positive exactly in the solid, one layer wider on every side."""
    inside = np.clip(logits, _NEAREST * saturation, saturation)
    inside = np.where(logits > 0, inside, saturation)  # what was filled is certain
    outside = np.clip(logits, -saturation, -_NEAREST * saturation)
    field = np.where(solid, inside, outside)
    # Outside mirrors the last sample, so that the surface lies half-way.
    wide = -np.abs(np.pad(field, 1, mode="edge"))
    wide[1:-1, 1:-1, 1:-1] = field
    return wide.astype(np.float32)


@dataclass(frozen=True)
class _Crossings:
    """Where the vertices on horizontal grid edges lie.

    Attributes:
      row: index of the vertex.
      axis: 0 or 1, of its grid edge.
      start: lower end of that edge.
      share: position from the sample inside (0) to the one outside (1).
      upward: whether the outside is the upper end.
    """

    row: Int[np.ndarray, " n"]
    axis: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " n"]
    share: Float[np.ndarray, " n"]
    upward: Bool[np.ndarray, " n"]

    def moved(
        self, vertices: Float[np.ndarray, "N 3"], distance: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "N 3"]:
        """`vertices` with these `distance` further out, but never as far as a sample."""
        share = np.clip(self.share + distance, _NEAREST, 1 - _NEAREST)
        result = vertices.copy()
        result[self.row, self.axis] = self.start + np.where(self.upward, share, 1 - share)
        return result


def _crossings(
    vertices: Float[np.ndarray, "N 3"], inside: Bool[np.ndarray, "R+2 R+2 R+2"]
) -> _Crossings:
    off = np.abs(vertices - vertices.round()) > _ON_GRID
    row = np.flatnonzero(~off[:, 2])
    axis = off[row].argmax(axis=1)
    lower = vertices[row].round().astype(np.int64)
    start = np.floor(vertices[row, axis]).astype(np.int64)
    lower[np.arange(len(row)), axis] = start
    upward = inside[tuple(lower.T)]
    share = vertices[row, axis] - start
    return _Crossings(row, axis, start, np.where(upward, share, 1 - share), upward)


def _widen(
    vertices: Float[np.ndarray, "N 3"],
    triangles: Int[np.ndarray, "F 3"],
    inside: Bool[np.ndarray, "R+2 R+2 R+2"],
    volume: float,
    com: Float[np.ndarray, " 3"],
) -> Float[np.ndarray, "N 3"]:
    """Vertices moved sideways until they enclose `volume` about `com`, or as nearly as they can.

    Lengths are in voxels.
    """
    crossings = _crossings(vertices, inside)
    place = (vertices[crossings.row] - com) / len(inside)
    place = np.concatenate([np.ones((len(place), 1)), place], axis=1)

    def moved(weights: Float[np.ndarray, " 4"]) -> Float[np.ndarray, "N 3"]:
        return crossings.moved(vertices, place @ weights)

    def error(weights: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " 4"]:
        enclosed, centre = _moments(moved(weights), triangles)
        return np.array([enclosed / volume - 1, *(centre - com)])

    return moved(least_squares(error, np.zeros(4), diff_step=1e-3, xtol=_CLOSE, ftol=_CLOSE).x)


def _moments(
    vertices: Float[np.ndarray, "N 3"], triangles: Int[np.ndarray, "F 3"]
) -> tuple[float, Float[np.ndarray, " 3"]]:
    """Volume and centre of mass of what a closed surface encloses."""
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    parts = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6  # tetrahedra to the origin
    volume = float(parts.sum())
    return volume, parts @ (a + b + c) / (4 * volume)


def _smooth(mesh: trimesh.Trimesh, rounds: int, voxel: float) -> trimesh.Trimesh:
    """Taubin's filter; what lies within a voxel of the lowest point stays, or soles would rock."""
    fixed = mesh.vertices[:, 2] < mesh.vertices[:, 2].min() + voxel
    smoothed = trimesh.smoothing.filter_taubin(
        mesh.copy(), lamb=_SHRINK, nu=_GROW, iterations=2 * rounds
    )
    vertices = np.where(fixed[:, None], mesh.vertices, smoothed.vertices)
    return trimesh.Trimesh(vertices, mesh.faces, process=False)
