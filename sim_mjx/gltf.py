"""glTF 2 geometry to triangles: the meshes of a scene where its nodes place them.

Images, materials and animations are never touched, so textures cost nothing and may be missing.

Legend: N vertices, F triangles.
"""

from __future__ import annotations

import base64
import json
import struct
import urllib.parse
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

Triangles = tuple[Float[np.ndarray, "N 3"], Int[np.ndarray, "F 3"]]

_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_MOST = 2**26  # entries of one array; only arrays without a buffer could have more
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
# Geometry behind these is there only for those who can unpack it.
_PACKED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")


class PackedError(ValueError):
    """The geometry is compressed in a way that is not supported."""


def split_glb(data: bytes) -> tuple[dict[str, Any], bytes]:
    """JSON and binary chunk of a GLB file.

    Raises:
        ValueError: it is none, or it is cut.
    """
    if len(data) < 20 or data[:4] != b"glTF":
        raise ValueError("no GLB header")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise ValueError(f"glTF version {version}, expected 2")
    if length > len(data):
        raise ValueError(f"cut after {len(data)} of {length} bytes")
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, at)
        if at + 8 + size > length:
            raise ValueError(f"a chunk of {size} bytes is cut")
        chunks.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    if b"JSON" not in chunks:
        raise ValueError("no JSON chunk")
    return json.loads(chunks[b"JSON"]), chunks.get(b"BIN\0", b"")


def parse_gltf(
    tree: dict[str, Any], binary: bytes, read: Callable[[str], bytes], max_faces: int
) -> Triangles:
    """Triangles of the default scene.

    Args:
        tree: the JSON document.
        binary: what buffers without an address mean.
        read: gives the bytes of a file beside this one.
        max_faces: no more than this many triangles are gathered, however often a mesh is placed.

    Returns:
        Vertices and triangles; more than `max_faces` triangles mean that there may be more.

    Raises:
        PackedError: the geometry is compressed.
        LookupError, TypeError, ValueError: the document contradicts itself or its buffers.
    """
    if not isinstance(tree, dict) or "asset" not in tree:
        raise ValueError("no glTF document")
    packed = sorted(set(_PACKED) & set(tree.get("extensionsRequired", ())))
    if packed:
        raise PackedError(f"compressed with {packed[0]}")
    source = _Source(tree, binary, read)
    vertices, triangles, faces = [], [], 0
    count = 0
    for mesh, matrix in _placed(tree):
        for points, corners in source.mesh(mesh):
            if np.abs(matrix - np.eye(4)).max() > 1e-8:
                # The column form, as trimesh has it: the same rounding.
                points = np.dot(matrix, np.column_stack([points, np.ones(len(points))]).T).T[:, :3]
                if np.linalg.det(matrix[:3, :3]) < 0:
                    corners = corners[:, ::-1]
            vertices.append(points)
            triangles.append(corners + count)
            count += len(points)
            faces += len(corners)
        if faces > max_faces:
            break
    if not vertices:
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    return np.concatenate(vertices), np.concatenate(triangles)


def _placed(tree: dict[str, Any]):
    """Meshes of the default scene with the matrix that places each, depth first."""
    nodes = tree.get("nodes", [])
    scenes = tree.get("scenes", [])
    if not scenes:
        return
    stack = [(node, np.eye(4)) for node in scenes[tree.get("scene", 0)].get("nodes", [])]
    visited = 0
    while stack:
        index, parent = stack.pop()
        node = nodes[index]
        visited += 1
        if visited > len(nodes):
            raise ValueError("nodes that are no tree")
        matrix = parent @ _local(node)
        if "mesh" in node:
            yield node["mesh"], matrix
        stack += [(child, matrix) for child in node.get("children", [])]


def _local(node: dict[str, Any]) -> Float[np.ndarray, "4 4"]:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    if "rotation" in node:
        matrix[:3, :3] = Rotation.from_quat(node["rotation"]).as_matrix()
    if "scale" in node:
        matrix[:3, :3] *= np.array(node["scale"], np.float64)
    if "translation" in node:
        matrix[:3, 3] = node["translation"]
    return matrix


class _Source:
    """Arrays of a document, read when they are asked for."""

    def __init__(self, tree: dict[str, Any], binary: bytes, read: Callable[[str], bytes]):
        self._tree, self._binary, self._read = tree, binary, read
        self._meshes: dict[int, list[Triangles]] = {}
        self._buffers: dict[int, bytes] = {}

    def mesh(self, index: int) -> list[Triangles]:
        """Vertices and triangles of each primitive that has any."""
        if index not in self._meshes:
            primitives = self._tree["meshes"][index]["primitives"]
            parts = [self._primitive(primitive) for primitive in primitives]
            self._meshes[index] = [part for part in parts if part is not None]
        return self._meshes[index]

    def _primitive(self, primitive: dict[str, Any]) -> Triangles | None:
        mode = primitive.get("mode", _TRIANGLES)
        position = primitive["attributes"].get("POSITION")
        if mode not in (_TRIANGLES, _STRIP, _FAN) or position is None:
            return None
        points = self._array(position).astype(np.float64)
        if "indices" in primitive:
            flat = self._array(primitive["indices"]).reshape(-1).astype(np.int64)
        else:
            flat = np.arange(len(points))
        if len(flat) and not 0 <= flat.min() <= flat.max() < len(points):
            raise ValueError("a triangle names a vertex that is not there")
        if mode == _TRIANGLES:
            return points, flat.reshape(-1, 3)
        corners = np.stack([flat[:-2], flat[1:-1], flat[2:]], axis=1)
        if mode == _FAN:
            corners[:, 0] = flat[:1]
        else:
            corners[1::2] = corners[1::2, [1, 0, 2]]  # every other one is wound the other way
        return points, corners

    def _array(self, index: int) -> np.ndarray:
        accessor = self._tree["accessors"][index]
        dtype = np.dtype(_TYPES[accessor["componentType"]])
        width, count = _COMPONENTS[accessor["type"]], accessor["count"]
        if count > _MOST:
            raise ValueError(f"an array of {count} entries")
        if "bufferView" in accessor:
            values = self._view(accessor, dtype, count, width)
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            kind = np.dtype(_TYPES[sparse["indices"]["componentType"]])
            where = self._view(sparse["indices"], kind, sparse["count"], 1)[:, 0]
            values = values.copy()
            values[where] = self._view(sparse["values"], dtype, sparse["count"], width)
        if accessor.get("normalized"):
            return np.maximum(values / np.float64(np.iinfo(dtype).max), -1.0)
        return values

    def _view(self, place: dict[str, Any], dtype: np.dtype, count: int, width: int) -> np.ndarray:
        view = self._tree["bufferViews"][place["bufferView"]]
        if set(_PACKED) & set(view.get("extensions", ())):
            raise PackedError("compressed buffers")
        buffer = self._buffer(view.get("buffer", 0))
        start = view.get("byteOffset", 0)
        part = memoryview(buffer)[start : start + view["byteLength"]]
        row = dtype.itemsize * width
        stride = view.get("byteStride", row)
        offset = place.get("byteOffset", 0)
        if (
            count < 0
            or offset < 0
            or stride < row
            or offset + (count - 1) * stride + row > len(part)
        ):
            raise ValueError("an array reaches beyond its buffer")
        return np.ndarray((count, width), dtype, part, offset, (stride, dtype.itemsize))

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            uri = self._tree["buffers"][index].get("uri")
            if uri is None:
                self._buffers[index] = self._binary
            elif uri.startswith("data:"):
                self._buffers[index] = base64.b64decode(uri.split(",", 1)[1])
            else:
                self._buffers[index] = self._read(urllib.parse.unquote(uri))
        return self._buffers[index]
