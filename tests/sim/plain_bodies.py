"""Bodies the plain way: the loops that the fast code in sim_mjx must agree with, bit for bit.

Labels of objects that barely stand depend on the last bits of their bodies, so a faster way to make
them must not change any.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull


def load(path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles as trimesh reads them, welded."""
    parts: list[Any] = trimesh.load_scene(path, process=False).dump()
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    vertices = np.concatenate([np.asarray(part.vertices, np.float64) for part in parts])
    faces = np.concatenate([np.asarray(p.faces) + at for p, at in zip(parts, offsets, strict=True)])
    used, flat = np.unique(faces, return_inverse=True)
    vertices = vertices[used]
    _, first, merged = np.unique(vertices.round(8), axis=0, return_index=True, return_inverse=True)
    return vertices[first], merged.reshape(-1)[flat].reshape(-1, 3)


def polygons(vertices) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Hull vertices, merged faces and their normals."""
    hull = ConvexHull(vertices)
    used, flat = np.unique(hull.simplices, return_inverse=True)
    corners, triangles = vertices[used], flat.reshape(-1, 3)
    a, b, c = (corners[triangles[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    inward = np.einsum("fi,fi->f", cross, hull.equations[:, :3]) < 0
    triangles[inward] = triangles[inward][:, ::-1]
    cross[inward] *= -1
    area = np.linalg.norm(cross, axis=1)
    kept = area > 1e-15
    triangles, cross, area = triangles[kept], cross[kept], area[kept]
    unit = cross / area[:, None] + 0.0
    polar = np.arccos(np.clip(unit[:, 2], -1.0, 1.0))
    azimuth = np.where(np.abs(unit[:, 2]) > 1 - 1e-7, 0.0, np.arctan2(unit[:, 1], unit[:, 0]))
    keys = np.round(np.stack([azimuth, polar]) / 0.01).T
    edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]], axis=2).reshape(-1, 2)
    owner = np.repeat(np.arange(len(triangles)), 3)
    order = np.lexsort(edges.T)
    same = (edges[order][1:] == edges[order][:-1]).all(axis=1)
    left, right = owner[order][:-1][same], owner[order][1:][same]
    joined = (keys[left] == keys[right]).all(axis=1)
    pairs = (left[joined], right[joined])
    graph = coo_array((np.ones(joined.sum()), pairs), shape=(len(triangles),) * 2)
    groups, label = connected_components(graph, directed=False)
    normals = np.zeros((groups, 3))
    np.add.at(normals, label, cross)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return corners, [_outline(triangles[label == g]) for g in range(groups)], normals


def _outline(triangles):
    if len(triangles) == 1:
        return triangles[0]
    directed = collections.Counter(
        (int(t[k]), int(t[(k + 1) % 3])) for t in triangles for k in range(3)
    )
    after = {a: b for a, b in directed if (b, a) not in directed}
    start = corner = next(iter(after))
    loop = [start]
    while (corner := after[corner]) != start and len(loop) <= len(after):
        loop.append(corner)
    return np.array(loop)


def contacts(polygon, vertices) -> np.ndarray:
    """MuJoCo's climb, one corner of one polygon at a time."""
    count = len(polygon)
    corners = vertices[polygon]

    def area(quad):
        a, b, c, d = corners[quad]
        return 0.5 * np.linalg.norm(np.cross(c - a, d - b)[None], axis=1)[0]

    rows = []
    for first in range(count):
        quad = [(first + k) % count for k in range(4)]
        if count == 3:
            quad[3] = first
        climbing = count > 4
        while climbing:
            climbing = False
            for side in (3, 2, 1):
                while True:
                    ahead = list(quad)
                    ahead[side] = (ahead[side] + 1) % count
                    if not area(ahead) > area(quad):
                        break
                    quad = ahead
                    if side == 3:
                        climbing = True
                        break
                if side == 3 and not climbing:
                    break
        rows.append(polygon[quad])
    return np.array(rows)


def integrals(vertices, triangles) -> tuple[float, np.ndarray, np.ndarray]:
    """Volume, centre and inertia tensor of the `legacy` mode."""
    vertices = vertices.astype(np.float32).astype(np.float64)
    corners = vertices[triangles]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = 0.5 * np.linalg.norm(cross, axis=1)
    apex = area @ corners.mean(axis=1) / area.sum()
    share = np.abs(np.einsum("fi,fi->f", (corners - apex)[:, 0], cross) / 6)
    com = apex + share @ (0.75 * (corners - apex).mean(axis=1)) / share.sum()
    corners = corners - com
    share = np.abs(np.einsum("fi,fi->f", corners[:, 0], cross) / 6)
    total = corners.sum(axis=1)
    second = np.einsum("f,fki,fkj->ij", share, corners, corners)
    second += np.einsum("f,fi,fj->ij", share, total, total)
    return float(share.sum()), com, (np.trace(second) * np.eye(3) - second) / 20
