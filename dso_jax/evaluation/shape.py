"""What a cheat would move: coarse measures of one mesh, robust against holes and noise.

The surface is put on a grid of the unit object and the inside filled, as for occupancy samples
(`dso_jax.evaluation.evaluate.shape_measures`), so open, self-crossing and doubled surfaces can be
measured. Cracks narrower than four voxels are closed first; a mesh with wider holes is measured as
the shell that it is.

Legend: R voxels along the longest side, S of the grid, K layers from the ground up.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import trimesh
from jaxtyping import Bool, Float
from scipy import ndimage

from dso_jax.evaluation.baselines import unit_upright
from dso_jax.evaluation.geometry import UpAxis
from sim_mjx.bodies import BodyError
from sim_mjx.meshes import Mesh

RESOLUTION = 64
# Samples for each voxel face that the surface covers: with 30, one in 10^13 is missed, and a miss
# would let the outside in.
_DENSITY = 30
_MAX_SAMPLES = 8_000_000
# Layers that count as the foot, 5 % of the object, and deeper: a reference is asked there, so that
# a floor just above the feet is not taken for one that has grown.
_FOOT, _DEEPER = 3, 5
# Cracks are closed by so many voxels from either side, and the grid has as wide a border.
_CLOSED = 2
# A plate is up to this thick (10 %), and is compared with as much of what stands on it.
_PLATE = 6
_ABOVE = 4
# Parts of less than this share of the solid are crumbs, not components.
_CRUMB = 0.01


@dataclasses.dataclass(frozen=True)
class Shape:
    """Measures of a unit object.

    Attributes:
        plate: how much more of the bounding rectangle the bottom covers than what stands on it,
            -1..1; a disk under a pole has almost its own area. 0 for objects too flat to tell.
        footprint: share of the bounding rectangle that is covered close to the ground.
        footprint_deeper: the same up to two layers higher.
        volume: of the filled object, in unit cubes.
        slenderness: height over the longer horizontal side.
        components: solid parts that are not crumbs.
    """

    plate: float
    footprint: float
    footprint_deeper: float
    volume: float
    slenderness: float
    components: int


def shape(mesh: Mesh, up: UpAxis = "auto") -> Shape:
    """Measures a mesh.

    Raises:
        BodyError: `flat`, `no_area`.
    """
    unit = unit_upright(mesh, up)
    solid = solid_grid(unit)
    extents = np.ptp(unit.vertices, axis=0)
    parts, count = ndimage.label(solid, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    columns = solid.any(axis=(1, 2)).sum() * solid.any(axis=(0, 2)).sum()
    layers = solid[:, :, solid.any(axis=(0, 1))]
    areas = layers.sum(axis=(0, 1)) / columns
    return Shape(
        plate=_plate(areas),
        footprint=float(layers[:, :, :_FOOT].any(axis=2).sum() / columns),
        footprint_deeper=float(layers[:, :, :_DEEPER].any(axis=2).sum() / columns),
        volume=float(solid.sum() / RESOLUTION**3),
        slenderness=float(extents[2] / max(extents[0], extents[1], 1e-9)),
        components=int((sizes >= _CRUMB * solid.sum()).sum()),
    )


def solid_grid(unit: Mesh) -> Bool[np.ndarray, "S S S"]:
    """Voxels on or inside the surface of a unit object, with an empty border.

    Raises:
        BodyError: `no_area` if the triangles have no area.
    """
    surface = trimesh.Trimesh(unit.vertices, unit.triangles, process=False)
    if not surface.area > 0:
        raise BodyError("no_area", "the triangles have no area")
    count = min(int(_DENSITY * RESOLUTION**2 * surface.area) + 1, _MAX_SAMPLES)
    points = np.concatenate([surface.sample(count, seed=0), unit.vertices])
    cells = np.clip(((points + 0.5) * RESOLUTION).astype(int), 0, RESOLUTION - 1)
    grid = np.zeros((RESOLUTION + 2 * _CLOSED + 2,) * 3, bool)
    grid[tuple((cells + _CLOSED + 1).T)] = True
    # What lies behind closed cracks, once the thickness that closing them took is taken off again.
    filled = ndimage.binary_fill_holes(ndimage.binary_dilation(grid, iterations=_CLOSED))
    return grid | ndimage.binary_erosion(filled, iterations=_CLOSED)


def _plate(areas: Float[np.ndarray, " K"]) -> float:
    """The largest drop from the mean of the lowest layers to the layers above them."""
    drops = [
        areas[:thick].mean() - areas[thick + 1 : thick + 1 + _ABOVE].mean()
        for thick in range(1, _PLATE + 1)
        if thick + 1 + _ABOVE <= len(areas)
    ]
    return float(max(drops, default=0.0))
