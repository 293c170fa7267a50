"""Meshes as files for printers, viewers and simulators: real units, on the ground, checked."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from dso_jax.atomic import write_atomic
from dso_jax.errors import UsageError
from sim_mjx import meshes as reader
from sim_mjx.mesh_files import UP_AXIS

# Millimetres in the unit of a format. A GLB is in metres by its specification and a 3MF states
# its unit; for the others slicers take millimetres.
UNIT_MM = {"glb": 1000.0, "stl": 1.0, "obj": 1.0, "ply": 1.0, "3mf": 1.0}


@dataclass(frozen=True)
class Exported:
    """What a file holds, read again from its bytes.

    Attributes:
      up: its up axis, `y` or `z`.
      unit: `m` or `mm`.
      watertight: closed, consistently wound, faces outward.
    """

    path: Path
    height_mm: float
    volume_cm3: float
    triangles: int
    watertight: bool
    up: str
    unit: str


def check_path(name: str | Path) -> Path:
    """A path that a mesh can be written to.

    Raises:
      UsageError: the suffix is none of `UNIT_MM`, or the place cannot be written.
    """
    path = Path(name)
    if _kind(path) not in UNIT_MM:
        raise UsageError(f"{path}: expected a file name that ends in .{', .'.join(UNIT_MM)}")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder, expected a file")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: no folder {path.parent}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError("the file is write-protected")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def export(
    mesh: trimesh.Trimesh, path: Path, *, height_mm: float, up: str | None = None
) -> Exported:
    """Writes a mesh whole or not at all; the format follows the suffix.

    Args:
      mesh: z up, in any unit.
      height_mm: of the object in the file; its lowest point is at 0.
      up: `y` or `z`; by default what readers of the format take for up.

    Raises:
      UsageError: no such format, axis or height.
      OSError: the file cannot be written.
    """
    kind = _kind(path)
    if kind not in UNIT_MM:
        raise UsageError(f"{path}: expected a file name that ends in .{', .'.join(UNIT_MM)}")
    up = up or UP_AXIS[kind]
    if up not in ("y", "z"):
        raise UsageError(f"up axis {up!r}: expected y or z")
    if not (height_mm > 0 and math.isfinite(height_mm)):
        raise UsageError(f"height {height_mm:g} mm: expected a positive number")
    placed = _placed(mesh, height_mm / UNIT_MM[kind], up)
    data = _encoded(placed, kind)
    write_atomic(path, lambda part: _write(part, data))
    return _described(path, data, up)


def _kind(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _encoded(mesh: trimesh.Trimesh, kind: str) -> bytes:
    # Viewers shade a GLB without normals flat.
    options: dict[str, Any] = {"include_normals": True} if kind == "glb" else {}
    data = mesh.export(file_type=kind, **options)
    if isinstance(data, str):
        return data.encode()
    assert isinstance(data, bytes)
    return data


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _placed(mesh: trimesh.Trimesh, height: float, up: str) -> trimesh.Trimesh:
    vertices = mesh.vertices - [0, 0, mesh.vertices[:, 2].min()]
    vertices = vertices * (height / vertices[:, 2].max())
    if up == "y":
        x, y, z = vertices.T
        vertices = np.stack([x, z, -y], axis=1)
    return trimesh.Trimesh(vertices, mesh.faces, process=False)


def _described(path: Path, data: bytes, up: str) -> Exported:
    kind = _kind(path)
    found = reader.mesh_from_bytes(path, data)
    mesh = trimesh.Trimesh(found.vertices, found.triangles, process=False)
    vertical = mesh.vertices[:, "xyz".index(up)]
    return Exported(
        path=path,
        height_mm=float(np.ptp(vertical)) * UNIT_MM[kind],
        volume_cm3=float(mesh.volume) * UNIT_MM[kind] ** 3 / 1000,
        triangles=len(mesh.faces),
        watertight=bool(mesh.is_volume),
        up=up,
        unit="m" if UNIT_MM[kind] == 1000 else "mm",
    )
