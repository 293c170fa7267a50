"""Small shapes and the committed meshes, for the physics tests."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import trimesh

from sim_mjx import Protocol, RigidBody
from sim_mjx.meshes import Mesh, body_from_triangles

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
EVAL = Protocol.preset("dso-eval")
FAST = Protocol.preset("fast")


def manifest() -> list[dict]:
    """The committed meshes with the labels that C MuJoCo recorded for them."""
    return json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))


def mesh_path(name: str) -> pathlib.Path:
    return DATA / "meshes" / f"{name}.obj"


def from_trimesh(mesh: trimesh.Trimesh, up: str = "z") -> Mesh:
    return Mesh(np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64), up)


def box(x: float, y: float, z: float) -> trimesh.Trimesh:
    return trimesh.creation.box(extents=(x, y, z))


def leaning(shift: float, protocol: Protocol = EVAL) -> RigidBody:
    """A unit box whose top is moved sideways: it falls once the shift is over one side length."""
    mesh = box(1.0, 1.0, 1.0)
    mesh.vertices[:, 0] += shift * (mesh.vertices[:, 2] + 0.5)
    return body_from_triangles(from_trimesh(mesh), protocol)


def grid(resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxel centres of the occupancy grid, index order [x, y, z]."""
    centre = (np.arange(resolution) + 0.5) / resolution - 0.5
    x, y, z = np.meshgrid(centre, centre, centre, indexing="ij")
    return x, y, z


def box_logits(resolution: int, half: tuple[float, float, float], centre=(0.0, 0.0, 0.0)):
    """Logits that cross zero on a box's faces, with unit slope a metre."""
    x, y, z = grid(resolution)
    sides = [np.abs(a - c) - h for a, c, h in zip((x, y, z), centre, half, strict=True)]
    return -np.maximum.reduce(sides).astype(np.float32)


def toy_logits(count: int, resolution: int = 32, seed: int = 0) -> np.ndarray:
    """Slender bodies on small feet with rough surfaces, some leaning: about a tenth fall."""
    rng = np.random.default_rng(seed)
    x, y, z = grid(resolution)
    objects = []
    for _ in range(count):
        half, depth, tall = rng.uniform([0.05, 0.05, 0.2], [0.2, 0.2, 0.45])
        lean = rng.uniform(-0.35, 0.35)
        upper = np.maximum.reduce(
            [
                np.abs(x - lean * (z + 0.45)) - half,
                np.abs(y) - depth,
                np.abs(z + 0.45 - tall) - tall,
            ]
        )
        foot = rng.uniform(0.1, 0.2, 2)
        lower = np.maximum.reduce(
            [np.abs(x) - foot[0], np.abs(y) - foot[1], np.abs(z + 0.43) - 0.04]
        )
        rough = rng.normal(size=x.shape) * 1e-3
        objects.append(rough - np.minimum(upper + 0.04, lower))
    return 30 * np.array(objects, np.float32)
