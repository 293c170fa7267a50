"""Surfaces ready for the device: what the host does of a body when JAX does the rest.

Legend: N vertices, F triangles.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sim_mjx.hull import convex_hull
from sim_mjx.meshes import Mesh, check_scale, mesh_from_bytes, start_vertices
from sim_mjx.prepare_one import FileWork
from sim_mjx.protocol import Protocol

# What the device integrates; the others take a host to count solid parts or fill voxels.
INERTIA_MODES = ("legacy", "exact", "convex")


class Surface(NamedTuple):
    """The triangles that are integrated, at the start pose, in the precision of MuJoCo's meshes."""

    vertices: Float[np.ndarray, "N 3"]
    triangles: Int[np.ndarray, "F 3"]
    source: str = ""
    sha256: str = ""


def surface_of(mesh: Mesh, protocol: Protocol) -> Surface:
    """Upright, scaled and, for `convex`, reduced to its hull.

    Raises:
        BodyError: as `meshes.body_from_triangles`, except that a flat mesh may pass.
    """
    vertices, triangles = start_vertices(mesh, protocol), mesh.triangles
    if protocol.scaling == "none":
        check_scale(vertices, mesh.source)
    if protocol.inertia == "convex":
        hull = convex_hull(vertices)
        vertices, triangles = hull.vertices, hull.triangles
    single, short = vertices.astype(np.float32), triangles.astype(np.int32)
    return Surface(single, short, mesh.source, mesh.sha256)


class SurfaceReader(FileWork[Surface]):
    """Reads files as far as `surface_of` goes."""

    def __init__(self, protocol: Protocol):
        self._protocol = protocol

    def make(self, path: pathlib.Path, data: bytes, digest: str) -> Surface:
        """The surface in a file's bytes."""
        return surface_of(mesh_from_bytes(path, data, digest), self._protocol)
