"""Bytes of a mesh file to vertices and triangles; geometry only, within bounds, or a reason.

GLB, glTF and OBJ have readers of their own, which are several times faster than general ones and
look at nothing but geometry. STL, PLY, DAE, OFF and 3MF go through trimesh.

Legend: N vertices, F triangles.
"""

from __future__ import annotations

import io
import json
import pathlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sim_mjx import gltf, obj
from sim_mjx.bodies import BodyError

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
# Beyond these a file is not read: a million triangles take seconds and a gigabyte.
MAX_BYTES = 256 * 2**20
MAX_FACES = 1_000_000
# XML needs twenty times its length once it is parsed.
_MAX_XML_BYTES = 64 * 2**20
_IMAGE = re.compile(r"\.(png|jpe?g)$", re.IGNORECASE)  # in archives; never unpacked
# What parsers raise on files that are not what their name says.
_PARSE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,  # a codec guesser for text that is no text
    LookupError,
    OSError,  # files that a glTF names beside itself
    RuntimeError,
    SyntaxError,  # XML parsers
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

Triangles = tuple[Float[np.ndarray, "N 3"], Int[np.ndarray, "F 3"]]


def read_bytes(path: pathlib.Path) -> bytes:
    """The contents of a mesh file.

    Raises:
        BodyError: `not_a_file`, `too_large`.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BodyError("not_a_file", f"{path}: a folder or device, expected a file")
    if status.st_size > MAX_BYTES:
        size = f"{status.st_size / 2**20:.0f} MiB, at most {MAX_BYTES / 2**20:.0f} are read"
        raise BodyError("too_large", f"{path}: {size}")
    return path.read_bytes()


def kind_of(path: pathlib.Path) -> str:
    """The format that a file's name promises.

    Raises:
        BodyError: `unsupported`.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in UP_AXIS:
        raise BodyError("unsupported", f"{path}: expected one of {', '.join(UP_AXIS)}")
    return kind


def read_triangles(path: pathlib.Path, data: bytes) -> Triangles:
    """Vertices and triangles of every mesh in the file, scene transforms applied.

    Args:
        path: where `data` is from; its suffix says the format.
        data: the file's bytes.

    Raises:
        BodyError: `unsupported`, `empty`, `not_a_mesh`, `nan_vertices`, `too_large`,
            `too_many_faces`.
    """
    kind = kind_of(path)
    if not data.strip(b" \t\r\n\0"):
        raise BodyError("empty", f"{path}: the file is empty")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
            vertices, triangles = _READERS.get(kind, _read_with_trimesh)(path, kind, data)
    except BodyError:
        raise
    except gltf.PackedError as error:
        raise BodyError("unsupported", f"{path}: {error}") from error
    except MemoryError as error:  # also headers that promise billions of vertices
        raise BodyError("too_large", f"{path}: needs too much memory") from error
    except (*_PARSE_ERRORS, *_late_errors(kind)) as error:
        raise BodyError("not_a_mesh", f"{path}: not a readable {kind} file: {error}") from error
    if not len(vertices) or not len(triangles):
        raise BodyError("empty", f"{path}: no triangles")
    if len(triangles) > MAX_FACES:
        raise BodyError("too_many_faces", f"{path}: more than {MAX_FACES} triangles")
    if not 0 <= triangles.min() <= triangles.max() < len(vertices):
        raise BodyError("not_a_mesh", f"{path}: a triangle names a vertex that is not there")
    if not np.isfinite(vertices).all():
        raise BodyError("nan_vertices", f"{path}: vertices are not finite")
    return vertices, triangles


def up_axis(kind: str, data: bytes) -> str:
    """The file's up axis: `x`, `y` or `z`."""
    stated = re.search(rb"<up_axis>\s*([XYZ])_UP", data) if kind == "dae" else None
    return stated.group(1).decode().lower() if stated else UP_AXIS[kind]


def is_whole(kind: str, data: bytes) -> bool:
    """Whether the bytes alone decide the geometry; a glTF may name files beside itself."""
    return kind != "gltf" or not re.search(rb'"uri"\s*:\s*"(?!data:)', data)


def _read_obj(path: pathlib.Path, kind: str, data: bytes) -> Triangles:
    if data.count(b"\nf") > MAX_FACES:
        raise BodyError("too_many_faces", f"{path}: more than {MAX_FACES} faces")
    return obj.parse_obj(data)


def _read_gltf(path: pathlib.Path, kind: str, data: bytes) -> Triangles:
    def beside(uri: str) -> bytes:
        if "://" in uri:
            raise ValueError(f"{uri} is not a file")
        return read_bytes(path.parent / uri)

    tree, binary = gltf.split_glb(data) if kind == "glb" else (json.loads(data), b"")
    return gltf.parse_gltf(tree, binary, beside, MAX_FACES)


def _read_with_trimesh(path: pathlib.Path, kind: str, data: bytes) -> Triangles:
    import trimesh  # half of a worker's start, and most files do without

    if _stated_faces(kind, data) > MAX_FACES:
        raise BodyError("too_many_faces", f"{path}: more than {MAX_FACES} triangles")
    if kind == "3mf":
        _check_archive(path, data)
    if kind == "dae" and len(data) > _MAX_XML_BYTES:
        raise BodyError("too_large", f"{path}: {len(data) / 2**20:.0f} MiB of XML")
    # Materials decide nothing, and the images they name are often missing.
    looks: dict[str, Any] = {"skip_materials": True} if kind == "ply" else {}
    scene = trimesh.load_scene(io.BytesIO(data), file_type=kind, process=False, **looks)
    parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh)]
    if not parts:
        if not scene.geometry:
            raise ValueError("no geometry")
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    vertices = [np.asarray(part.vertices, np.float64) for part in parts]
    triangles = [np.asarray(p.faces, np.int64) + at for p, at in zip(parts, offsets, strict=True)]
    return np.concatenate(vertices), np.concatenate(triangles)


def _stated_faces(kind: str, data: bytes) -> int:
    """The number of faces that a header states, so that too many need not be read; 0 if none."""
    if kind == "stl" and len(data) >= 84:
        (count,) = struct.unpack_from("<I", data, 80)
        return count if len(data) == 84 + 50 * count else 0
    stated = re.search(rb"\nelement face (\d{1,12})\s", data[:4096]) if kind == "ply" else None
    return int(stated.group(1)) if stated else 0


def _check_archive(path: pathlib.Path, data: bytes) -> None:
    """Refuses archives that unpack to more than is reasonable, before they are unpacked."""
    # zipfile never unpacks more of an entry than its header states.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries if not _IMAGE.search(entry.filename))
    if size > _MAX_XML_BYTES:
        raise BodyError("too_large", f"{path}: unpacks to {size / 2**20:.0f} MiB")


def _late_errors(kind: str) -> tuple[type[Exception], ...]:
    if kind != "dae":
        return ()
    from collada.common import DaeError  # only pays for itself when a DAE is read

    return (DaeError,)


_READERS: dict[str, Callable[[pathlib.Path, str, bytes], Triangles]] = {
    "glb": _read_gltf,
    "gltf": _read_gltf,
    "obj": _read_obj,
}
