"""What worker processes do with a file: measure its shape, or change it as a baseline does.

It is a module of its own, without JAX, so that a worker starts in half a second.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import trimesh

from dso_jax.evaluation.baselines import best_pose
from dso_jax.evaluation.cut import CUTS, flat_cut
from dso_jax.evaluation.geometry import UpAxis
from dso_jax.evaluation.shape import Shape, shape
from sim_mjx.meshes import Mesh, mesh_from_bytes
from sim_mjx.prepare_one import FileWork

CUT, BEST_POSE = "cut", "best-pose"


def _cut(mesh: Mesh, up: UpAxis, height: float) -> Mesh:
    return flat_cut(mesh, height, up)


def _lay(mesh: Mesh, up: UpAxis) -> Mesh:
    return best_pose(mesh, up=up)[0]


# A baseline's name -> the change that it makes.
CHANGES: dict[str, Callable[[Mesh, UpAxis], Mesh]] = {
    **{f"{CUT}-{height:g}": functools.partial(_cut, height=height) for height in CUTS},
    BEST_POSE: _lay,
}


class ShapeWork(FileWork[tuple[Shape, bool]]):
    """Measures one file."""

    def __init__(self, up: UpAxis = "auto") -> None:
        self._up: UpAxis = up

    def make(self, path: pathlib.Path, data: bytes, digest: str) -> tuple[Shape, bool]:
        """The shape, and whether the mesh is closed."""
        mesh = mesh_from_bytes(path, data, digest)
        closed = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False).is_watertight
        return shape(mesh, self._up), bool(closed)


class AlterWork(FileWork[bytes]):
    """Makes a PLY file, z up, of one changed mesh."""

    def __init__(self, name: str, up: UpAxis = "auto") -> None:
        self._change = CHANGES[name]
        self._up: UpAxis = up

    def make(self, path: pathlib.Path, data: bytes, digest: str) -> bytes:
        """The changed mesh as a file's bytes."""
        changed = self._change(mesh_from_bytes(path, data, digest), self._up)
        written = trimesh.Trimesh(changed.vertices, changed.triangles, process=False)
        made = written.export(file_type="ply")
        assert isinstance(made, bytes)
        return made
