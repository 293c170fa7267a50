"""What is wrong with a mesh, as a printer or a simulator would put it.

Duplicate vertices are welded when the file is read, so what is counted here is in the surface, not
in how a format stores it. Nothing is repaired, and crossing triangles are not looked for.

Legend: N vertices, F triangles, E edges, C parts, P points.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sim_mjx.meshes import Mesh

# Parts that others are looked for inside of: the largest. Leaves of a tree are thousands.
_CONTAINERS = 8
_PAIRS = 2**20  # of a point and a triangle, worked on at once
# A part shorter than this share of the object is a crumb.
_CRUMB = 0.01
_NO_AREA = 1e-14  # twice the area, in squares of the object's size


@dataclasses.dataclass(frozen=True)
class Faults:
    """Counts; a printable solid of one part has zeros everywhere but in `parts`.

    Attributes:
        parts: pieces of surface that share no vertex.
        crumbs: parts shorter than 1 % of the object.
        open_edges: edges with one triangle.
        holes: groups of open edges that hang together; a sheet's rim is one.
        crowded_edges: edges with more than two triangles.
        mixed_edges: edges whose two triangles are wound against each other.
        degenerate: triangles without area.
        doubled: triangles that repeat another's three vertices.
        inside_out: closed parts whose triangles face inwards, and that are no cavity.
        cavities: closed parts inside another, facing inwards: a hollow, which weighs nothing.
        inner_shells: closed parts inside another, facing outwards: a doubled wall or hidden junk,
            which is counted twice by anything that adds up volumes.
    """

    parts: int
    crumbs: int
    open_edges: int
    holes: int
    crowded_edges: int
    mixed_edges: int
    degenerate: int
    doubled: int
    inside_out: int
    cavities: int
    inner_shells: int

    @property
    def watertight(self) -> bool:
        """Every edge has two triangles, wound alike: signed volumes mean something."""
        return not (self.open_edges or self.crowded_edges or self.mixed_edges)


def faults(mesh: Mesh) -> Faults:
    """Looks a mesh over; its vertices are taken to be welded, as `load_mesh` does."""
    vertices, size = mesh.vertices, np.ptp(mesh.vertices, axis=0).max()
    whole = (mesh.triangles != np.roll(mesh.triangles, 1, axis=1)).all(axis=1)
    triangles = mesh.triangles[whole]
    corners = vertices[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    thin = ~(np.linalg.norm(normals, axis=1) > _NO_AREA * size**2)
    _, repeats = np.unique(np.sort(triangles, axis=1), axis=0, return_counts=True)
    edges = np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)])
    number = edges.min(axis=1) * len(vertices) + edges.max(axis=1)
    number, owner, count = np.unique(number, return_inverse=True, return_counts=True)
    unique = np.stack(np.divmod(number, len(vertices)), axis=1)
    # How many of an edge's triangles go from its lower to its higher vertex.
    forth = np.bincount(owner, edges[:, 0] < edges[:, 1], len(unique))
    mixed = (count == 2) & (forth != 1)
    part = _parts(triangles, len(vertices))
    inside_out, cavities, shells = 0, 0, 0
    lengths = np.zeros(0)
    if len(triangles):
        closed = np.ones(part.max() + 1, bool)
        closed[part[unique[(count != 2) | mixed].ravel()]] = False
        boxes = _boxes(vertices, part)
        lengths = (boxes[1] - boxes[0]).max(axis=1)
        inside_out, cavities, shells = _nesting(vertices, triangles, part, closed, boxes)
    return Faults(
        parts=len(lengths),
        crumbs=int((lengths < _CRUMB * size).sum()),
        open_edges=int((count == 1).sum()),
        holes=int(_parts(unique[count == 1], len(vertices)).max(initial=-1) + 1),
        crowded_edges=int((count > 2).sum()),
        mixed_edges=int(mixed.sum()),
        degenerate=int((~whole).sum() + thin.sum()),
        doubled=int((repeats - 1).sum()),
        inside_out=inside_out,
        cavities=cavities,
        inner_shells=shells,
    )


def _parts(faces: Int[np.ndarray, "F k"], vertices: int) -> Int[np.ndarray, " N"]:
    """The connected part that each vertex belongs to, 0..C-1; -1 where no face has it."""
    left, right = faces[:, :-1].ravel(), faces[:, 1:].ravel()
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(vertices, vertices))
    label = connected_components(graph, directed=False)[1]
    part = np.full(vertices, -1)
    used = np.unique(faces)
    part[used] = np.unique(label[used], return_inverse=True)[1].ravel()
    return part


def _boxes(
    vertices: Float[np.ndarray, "N 3"], part: Int[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "C 3"], Float[np.ndarray, "C 3"]]:
    """Lowest and highest corner of the box around each part."""
    count, used = part.max() + 1, part >= 0
    low, high = np.full((count, 3), np.inf), np.full((count, 3), -np.inf)
    np.minimum.at(low, part[used], vertices[used])
    np.maximum.at(high, part[used], vertices[used])
    return low, high


def _nesting(vertices, triangles, part, closed: Bool[np.ndarray, " C"], boxes):
    """How many closed parts are inside out, cavities, and inner shells."""
    low, high = boxes
    owner = part[triangles[:, 0]]
    corners = vertices[triangles]
    volume = np.bincount(owner, np.linalg.det(corners - low[owner][:, None]), len(closed))
    first = np.zeros(len(closed), int)  # a vertex of each part
    first[owner] = triangles[:, 0]
    around = np.zeros(len(closed))
    by_size = np.argsort(-np.prod(high - low, axis=1))
    for container in by_size[closed[by_size]][:_CONTAINERS]:
        held = closed & (low > low[container]).all(axis=1) & (high < high[container]).all(axis=1)
        turns = _winding(vertices[first[held]], corners[owner == container])
        around[held] += np.round(turns)
    outwards, inwards = closed & (volume > 0), closed & (volume < 0)
    within = around >= 1
    return (
        int((inwards & ~within).sum()),
        int((inwards & within).sum()),
        int((outwards & within).sum()),
    )


def _winding(
    points: Float[np.ndarray, "P 3"], corners: Float[np.ndarray, "F 3 3"]
) -> Float[np.ndarray, " P"]:
    """How often a closed surface winds around each point: 0 outside, 1 inside.

    The sum of solid angles of its triangles: Van Oosterom and Strackee 1983.
    """
    total = np.zeros(len(points))
    step = max(1, _PAIRS // max(len(points), 1))
    for begin in range(0, len(corners), step):
        a, b, c = (corners[begin : begin + step, k] - points[:, None] for k in range(3))
        x, y, z = (np.linalg.norm(v, axis=2) for v in (a, b, c))
        dots = [np.einsum("pfi,pfi->pf", *pair) for pair in ((a, b), (b, c), (c, a))]
        below = x * y * z + dots[0] * z + dots[1] * x + dots[2] * y
        triple = np.einsum("pfi,pfi->pf", a, np.cross(b, c))
        total += np.arctan2(triple, below).sum(axis=1) / (2 * np.pi)
    return total
