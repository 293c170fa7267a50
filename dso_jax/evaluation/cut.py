"""The flat cut: what is lower than a height goes, and the section is closed.

Triangulations that leave out corners on straight lines would leave the mesh open there, and one
section has parts inside parts; so loops are sorted into areas and filled by a constrained Delaunay
triangulation, which keeps every corner.

Legend: N vertices, F triangles, G triangles with the cap, E edges.
"""

from __future__ import annotations

import numpy as np
import shapely
import trimesh
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from dso_jax.evaluation.baselines import unit_upright
from dso_jax.evaluation.geometry import UpAxis
from sim_mjx.bodies import BodyError
from sim_mjx.meshes import Mesh, weld

# Heights of the paper's cuts, in longest sides.
CUTS = (0.05, 0.1, 0.15, 0.2)
# Vertices so close to the cutting plane are on it, as trimesh has it.
_ON_PLANE = 1e-8


def flat_cut(mesh: Mesh, height: float, up: UpAxis = "auto") -> Mesh:
    """Cuts off what is lower than `height` above the lowest point and closes the section.

    Args:
        mesh: any mesh whose section is made of closed loops; holes elsewhere do not matter.
        height: in longest sides of the object.
        up: the axis that points up; `auto` takes the mesh's own.

    Returns:
        What is left, at the place and scale that it had in the unit object.

    Raises:
        BodyError: `nothing_left`, `open_section` if loops of the section are not closed,
            `cap_failed` if they cannot be filled.
    """
    unit = unit_upright(mesh, up)
    plane = unit.vertices[:, 2].min() + height
    solid = trimesh.Trimesh(unit.vertices, unit.triangles, process=False)
    cut = solid.slice_plane([0.0, 0.0, plane], [0.0, 0.0, 1.0])
    triangles = np.asarray(cut.faces, np.int64).reshape(-1, 3)
    vertices, triangles = weld(np.asarray(cut.vertices).reshape(-1, 3), triangles)
    if not len(triangles) or np.ptp(vertices[:, 2]) <= _ON_PLANE:
        raise BodyError("nothing_left", f"nothing is higher than {height} of the object's size")
    return Mesh(vertices, close_section(vertices, triangles, plane), "z", mesh.source)


def close_section(
    vertices: Float[np.ndarray, "N 3"], triangles: Int[np.ndarray, "F 3"], plane: float
) -> Int[np.ndarray, "G 3"]:
    """The triangles and those that close, from below, what ends on the plane z = `plane`.

    Raises:
        BodyError: `open_section`, `cap_failed`.
    """
    whole = (triangles != np.roll(triangles, 1, axis=1)).all(axis=1)
    triangles = triangles[whole]
    open_edges = _open_edges(vertices, triangles, plane)
    loose = np.bincount(open_edges.ravel(), minlength=1) % 2
    if loose.any():
        ends = f"{loose.sum()} loose ends"
        raise BodyError("open_section", f"the section is not made of closed loops: {ends}")
    if not len(open_edges):
        return triangles
    flat = vertices[:, :2]
    loops = trimesh.graph.traversals(open_edges, mode="dfs")
    regions = _regions([shapely.Polygon(flat[loop]) for loop in loops if len(loop) > 2])
    try:
        parts = shapely.get_parts(shapely.constrained_delaunay_triangles(regions))
    except shapely.errors.ShapelyError as error:
        raise BodyError("cap_failed", f"the section crosses itself: {error}") from error
    corners = shapely.get_coordinates(parts).reshape(-1, 4, 2)[:, :3]
    rim = np.unique(open_edges)
    cap = rim[cKDTree(flat[rim]).query(corners)[1]]
    forth, back = flat[cap[:, 1]] - flat[cap[:, 0]], flat[cap[:, 2]] - flat[cap[:, 0]]
    upwards = forth[:, 0] * back[:, 1] > forth[:, 1] * back[:, 0]
    cap[upwards] = cap[upwards][:, ::-1]
    closed = np.concatenate([triangles, cap])
    gaps = len(_open_edges(vertices, closed, plane))
    if gaps:
        raise BodyError("cap_failed", f"{gaps} edges of the section stay open")
    return closed


def _regions(loops: list[shapely.Polygon]) -> list[shapely.Polygon]:
    """Loops to areas: a loop inside an odd number of others is a hole of the innermost."""
    shapes = np.array(loops)
    holds = shapely.contains(shapes[:, None], shapes[None])
    np.fill_diagonal(holds, False)
    depth = holds.sum(axis=0)
    return [
        shapely.Polygon(
            loops[i].exterior,
            [loops[j].exterior for j in np.flatnonzero(holds[i] & (depth == depth[i] + 1))],
        )
        for i in np.flatnonzero(depth % 2 == 0)
    ]


def _open_edges(
    vertices: Float[np.ndarray, "N 3"], triangles: Int[np.ndarray, "F 3"], plane: float
) -> Int[np.ndarray, "E 2"]:
    """Edges on the plane with an odd number of triangles."""
    on_plane = np.abs(vertices[:, 2] - plane) < _ON_PLANE
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    edges = np.sort(edges[on_plane[edges].all(axis=1)], axis=1)
    edges, count = np.unique(edges, axis=0, return_counts=True)
    return edges[count % 2 == 1]
