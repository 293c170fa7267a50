"""Triangle meshes from files as generators and catalogues write them, and bodies from them.

Reads what trimesh reads (GLB, glTF, OBJ, STL, PLY, DAE, OFF, 3MF), applies scene transforms, welds
duplicate vertices and turns the file's up axis to z. Contents that cannot be used raise `BodyError`
with a code: `not_a_mesh`, `unsupported`, `empty`, `nan_vertices`, `flat`.

Legend: N vertices, F triangles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import pathlib
import re
import struct
import zipfile
import zlib

import numpy as np
import trimesh
from jaxtyping import Float, Int

from sim_mjx import buckets
from sim_mjx.bodies import BodyError, Provenance, RigidBody
from sim_mjx.hull import convex_hull
from sim_mjx.mass_properties import mass_properties
from sim_mjx.protocol import Protocol

_log = logging.getLogger(__name__)

# The up axis that a format's specification or its users agree on. DAE files state theirs.
UP_AXIS = {
    "glb": "y",
    "gltf": "y",
    "obj": "y",
    "dae": "y",
    "stl": "z",
    "ply": "z",
    "off": "z",
    "3mf": "z",
}
# What trimesh's parsers raise on files that are not what their name says.
_PARSE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,  # a codec guesser for text that is no text
    LookupError,
    MemoryError,  # headers that promise billions of vertices
    OSError,  # files that a glTF names beside itself
    RuntimeError,
    SyntaxError,  # XML parsers
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# Vertices closer than this are one: the decimal places that trimesh's merge compares.
_WELD_DECIMALS = 8


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A welded triangle soup in the file's own axes.

    Attributes:
        vertices: referenced vertices, float64.
        triangles: indices into `vertices`.
        up: the file's up axis, `y` or `z`.
        source: path.
        sha256: digest of the file.
    """

    vertices: Float[np.ndarray, "N 3"]
    triangles: Int[np.ndarray, "F 3"]
    up: str = "z"
    source: str = ""
    sha256: str = ""


def load_mesh(path: str | pathlib.Path) -> Mesh:
    """Reads one file.

    Raises:
        BodyError: the contents are not a usable mesh.
        OSError: the file cannot be read.
    """
    path = pathlib.Path(path)
    data = path.read_bytes()
    kind = path.suffix.lower().lstrip(".")
    if kind not in UP_AXIS:
        raise BodyError("unsupported", f"{path}: expected one of {', '.join(UP_AXIS)}")
    if not data.strip():
        raise BodyError("empty", f"{path}: the file is empty")
    vertices, triangles = _parse(path, kind, data)
    if not len(vertices) or not len(triangles):
        raise BodyError("empty", f"{path}: no triangles")
    if not np.isfinite(vertices).all():
        raise BodyError("nan_vertices", f"{path}: vertices are not finite")
    vertices, triangles = weld(vertices, triangles)
    up = UP_AXIS[kind]
    stated = re.search(rb"<up_axis>\s*([XYZ])_UP", data) if kind == "dae" else None
    if stated:
        up = stated.group(1).decode().lower()
    return Mesh(vertices, triangles, up, str(path), hashlib.sha256(data).hexdigest())


def sha256(path: str | pathlib.Path) -> str:
    """Digest of a file's bytes."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def weld(
    vertices: Float[np.ndarray, "N 3"], triangles: Int[np.ndarray, "F 3"]
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "F 3"]]:
    """Drops unreferenced vertices and merges duplicates; faces keep their order."""
    used = np.zeros(len(vertices), bool)
    used[triangles.ravel()] = True
    vertices = np.asarray(vertices, np.float64)[used]
    rounded = vertices.round(_WELD_DECIMALS)
    # By x, then y, then z; of equal ones the first comes first.
    order = np.lexsort(rounded.T[::-1])
    rounded = rounded[order]
    new = np.concatenate([[True], (rounded[1:] != rounded[:-1]).any(axis=1)])[: len(order)]
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(new) - 1
    merged = np.empty(len(used), np.int64)
    merged[used] = place
    return vertices[order[new]], merged[triangles]


def body_from_mesh(path: str | pathlib.Path, protocol: Protocol) -> RigidBody:
    """Reads a file and makes its body, a batch of one.

    Raises:
        BodyError: the contents are not a usable mesh; `reason` says why.
        OSError: the file cannot be read.
    """
    return body_from_triangles(load_mesh(path), protocol)


def body_from_triangles(mesh: Mesh, protocol: Protocol) -> RigidBody:
    """The body of a loaded mesh, upright and scaled as the protocol says.

    Raises:
        BodyError: `flat` if the vertices span no volume.
    """
    vertices = start_vertices(mesh, protocol)
    hull = convex_hull(vertices)
    mass = mass_properties(vertices, mesh.triangles, hull, protocol.inertia)
    if mass.fallback:
        _log.info(
            "%s: %s inertia instead of %s: %s",
            mesh.source,
            mass.mode,
            protocol.inertia,
            mass.fallback,
        )
    return buckets.hull_body(
        hull,
        mass,
        protocol.density,
        Provenance(
            source=mesh.source,
            sha256=mesh.sha256,
            inertia=mass.mode,
            fallback=mass.fallback,
            hull_points=len(hull.vertices),
            volume=mass.volume,
        ),
    )


def start_vertices(mesh: Mesh, protocol: Protocol) -> Float[np.ndarray, "N 3"]:
    """The vertices in the body frame: z up, scaled as the protocol says.

    Raises:
        BodyError: `flat` if all vertices coincide.
    """
    vertices = upright(mesh.vertices, mesh.up if protocol.up == "auto" else protocol.up, protocol)
    if protocol.scaling == "none":
        return vertices
    vertices = vertices - vertices.mean(axis=0)
    extent = np.abs(vertices).max()
    if not extent > 0:
        raise BodyError("flat", f"{mesh.source}: all vertices coincide")
    return vertices * (0.5 / extent)


def upright(
    vertices: Float[np.ndarray, "N 3"], up: str, protocol: Protocol
) -> Float[np.ndarray, "N 3"]:
    """Turns `up` to z: the proper rotation (x, -z, y), or DSO's column swap, which mirrors."""
    if up == "z":
        return vertices
    x, y, z = vertices.T
    if up == "x":
        return np.stack([y, z, x], axis=1)
    return np.stack([x, z if protocol.up_turn == "swap" else -z, y], axis=1)


def _parse(path: pathlib.Path, kind: str, data: bytes):
    """Vertices and triangles of every mesh in the file, scene transforms applied."""
    from collada.common import DaeError  # only pays for itself when a mesh is read

    if kind == "obj":
        # Materials decide nothing, and the files they name are often missing.
        data = re.sub(rb"(?m)^\s*(mtllib|usemtl)\b.*$", b"", data)
    try:
        scene = trimesh.load_scene(
            io.BytesIO(data) if kind != "gltf" else str(path), file_type=kind, process=False
        )
        parts = scene.dump()
    except (*_PARSE_ERRORS, DaeError) as error:
        raise BodyError("not_a_mesh", f"{path}: not a readable {kind} file: {error}") from error
    parts = [part for part in parts if isinstance(part, trimesh.Trimesh)]
    if not parts and not scene.geometry:
        raise BodyError("not_a_mesh", f"{path}: no geometry in this {kind} file")
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
    vertices = [np.asarray(part.vertices, np.float64) for part in parts]
    triangles = [
        np.asarray(part.faces, np.int64) + at for part, at in zip(parts, offsets, strict=False)
    ]
    if not parts:
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    return np.concatenate(vertices), np.concatenate(triangles)
