"""Triangle meshes from files as generators and catalogues write them, and bodies from them.

`sim_mjx.mesh_files` reads the formats; here duplicate vertices are welded, the file's up axis is
turned to z, and hull and mass make a body. Contents that cannot be used raise `BodyError` with a
code: `not_a_file`, `too_large`, `too_many_faces`, `unsupported`, `not_a_mesh`, `empty`,
`nan_vertices`, `flat`, `scale`.

Legend: N vertices, F triangles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import pathlib

import numpy as np
from jaxtyping import Float, Int

from sim_mjx import buckets, mesh_files
from sim_mjx.bodies import BodyError, Provenance, RigidBody
from sim_mjx.hull import convex_hull
from sim_mjx.mass_properties import mass_properties
from sim_mjx.mesh_files import UP_AXIS as UP_AXIS
from sim_mjx.protocol import Protocol

_log = logging.getLogger(__name__)

# Vertices closer than this are one: the decimal places that trimesh's merge compares.
_WELD_DECIMALS = 8
# Raw units must be metres within reason: what is larger takes longer to fall than a run lasts, what
# is smaller falls within a few steps.
_SIZES = (1e-3, 1e3)


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
    return mesh_from_bytes(path, mesh_files.read_bytes(path))


def mesh_from_bytes(path: pathlib.Path, data: bytes, digest: str = "") -> Mesh:
    """The mesh in a file's bytes; `path` says the format, `digest` is computed unless given.

    Raises:
        BodyError: the contents are not a usable mesh.
    """
    vertices, triangles = weld(*mesh_files.read_triangles(path, data))
    up = mesh_files.up_axis(mesh_files.kind_of(path), data)
    return Mesh(vertices, triangles, up, str(path), digest or hashlib.sha256(data).hexdigest())


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
    order = _lexical_order(rounded)
    rounded = rounded[order]
    new = np.concatenate([[True], (rounded[1:] != rounded[:-1]).any(axis=1)])[: len(order)]
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(new) - 1
    merged = np.empty(len(used), np.int64)
    merged[used] = place
    return vertices[order[new]], merged[triangles]


def _lexical_order(points: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """The order by x, then y, then z; of equal points the first comes first."""
    order = np.argsort(points[:, 0])
    x = points[order, 0]
    tied = np.zeros(len(order) + 1, bool)
    tied[1:-1] = x[1:] == x[:-1]
    tied = tied[1:] | tied[:-1]
    # Only among equal x do the other two count; sorting by one is three times faster.
    members = np.sort(order[tied])
    order[tied] = members[np.lexsort(points[members].T[::-1])]
    return order


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
        BodyError: `flat` if the vertices span no volume, `scale` if raw units cannot be metres.
    """
    vertices = start_vertices(mesh, protocol)
    if protocol.scaling == "none":
        check_scale(vertices, mesh.source)
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


def check_scale(vertices: Float[np.ndarray, "N 3"], source: str) -> None:
    """Raises `BodyError` (`scale`) if raw units cannot be metres."""
    side = float(np.ptp(vertices, axis=0).max())
    if not _SIZES[0] <= side <= _SIZES[1]:
        hint = "; in millimetres?" if side > _SIZES[1] else ""
        raise BodyError("scale", f"{source}: {side:.4g} m from end to end{hint}")


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
