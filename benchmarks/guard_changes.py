"""What honest generators and cheats do to an object: changes that guards are calibrated on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import trimesh
from scipy import ndimage
from skimage import measure

from dso_jax.evaluation.baselines import unit_upright
from sim_mjx.meshes import Mesh

Change = Callable[[Mesh], Mesh]


def shaken(mesh: Mesh, amount: float, turn_deg: float = 0.0, seed: int = 0) -> Mesh:
    """Noise on every vertex, in object sizes, then a turn about the up axis."""
    rng = np.random.default_rng(seed)
    size = np.ptp(mesh.vertices, axis=0).max()
    vertices = mesh.vertices + amount * size * rng.normal(size=mesh.vertices.shape)
    axis = [0, 1, 0] if mesh.up == "y" else [0, 0, 1]
    turn = trimesh.transformations.rotation_matrix(np.radians(turn_deg), axis)[:3, :3]
    return Mesh(vertices @ turn.T, mesh.triangles, mesh.up)


def decimated(mesh: Mesh, cells: int) -> Mesh:
    """All vertices of a cell become one: their mean. Triangles that collapse go."""
    low, size = mesh.vertices.min(axis=0), np.ptp(mesh.vertices, axis=0).max()
    cell = np.floor((mesh.vertices - low) / size * cells * (1 - 1e-9))
    _, label = np.unique(cell, axis=0, return_inverse=True)
    count = np.bincount(label)
    means = [np.bincount(label, mesh.vertices[:, k]) / count for k in range(3)]
    triangles = label[mesh.triangles]
    whole = (triangles != np.roll(triangles, 1, axis=1)).all(axis=1)
    return Mesh(np.stack(means, axis=1), triangles[whole], mesh.up)


def voxelised(mesh: Mesh, resolution: int) -> Mesh:
    """Marching cubes around a fine sample of the surface, interiors filled."""
    low, size = mesh.vertices.min(axis=0), np.ptp(mesh.vertices, axis=0).max()
    points = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False).sample(200_000, seed=0)
    grid = np.zeros((resolution + 6,) * 3, bool)
    cells = np.floor((points - low) / size * resolution * (1 - 1e-9)).astype(int) + 3
    grid[tuple(cells.T)] = True
    solid = ndimage.gaussian_filter(ndimage.binary_fill_holes(grid).astype(np.float32), 0.6)
    vertices, triangles, _, _ = measure.marching_cubes(solid, 0.5)
    return Mesh(low + (vertices - 2.5) / resolution * size, triangles.astype(np.int64), mesh.up)


def joined(mesh: Mesh, other: trimesh.Trimesh) -> Mesh:
    """Both, z up."""
    vertices = np.concatenate([mesh.vertices, np.asarray(other.vertices)])
    triangles = np.concatenate([mesh.triangles, np.asarray(other.faces) + len(mesh.vertices)])
    return Mesh(vertices, triangles, "z")


def plated(mesh: Mesh, thick: float, wide: float) -> Mesh:
    """A plate under the object, `wide` times as long and as wide as it."""
    unit = unit_upright(mesh)
    low, size = unit.vertices.min(axis=0), np.ptp(unit.vertices, axis=0)
    plate = trimesh.creation.box((wide * size[0], wide * size[1], thick))
    plate.apply_translation([0, 0, low[2] + thick / 2])
    return joined(unit, plate)


def stretched(mesh: Mesh, factor: float) -> Mesh:
    """Flatter or taller."""
    return Mesh(unit_upright(mesh).vertices * [1, 1, factor], mesh.triangles, "z")


HONEST: dict[str, Change] = {
    "shaken": lambda mesh: shaken(mesh, 0.003, 2.0),
    "shaken-more": lambda mesh: shaken(mesh, 0.01, -4.0, seed=1),
    "decimated": lambda mesh: decimated(mesh, 48),
    "voxelised": lambda mesh: voxelised(mesh, 64),
    "voxelised-coarse": lambda mesh: voxelised(mesh, 40),
}
# A cheat, and the guards of which one must see it.
CHEATS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "plate": (lambda mesh: plated(mesh, 0.03, 1.0), ("base_plate", "footprint", "volume")),
    "wide plate": (lambda mesh: plated(mesh, 0.04, 1.5), ("base_plate", "footprint", "height")),
    "flattened": (lambda mesh: stretched(mesh, 0.6), ("height",)),
    "stretched": (lambda mesh: stretched(mesh, 1.6), ("height",)),
}
