"""Bodies from 64^3 voxels of a mesh, as a structure decoder gives them, against the mesh itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from benchmarks.agreement_score import PROTOCOL, Labels, compare
from benchmarks.agreement_sets import MeshSet
from sim_mjx import bodies_from_occupancy, concatenate, drop
from sim_mjx.meshes import load_mesh, upright
from sim_mjx.readjudicate import readjudicate
from sim_mjx.rest import INVALID

RESOLUTION = 64
_BATCH = 32  # grids in memory
_PAIRS = 2**18  # of a triangle and a voxel, worked on at once
# Faces on the grid's own border belong to its outermost voxels.
_INSIDE = 1 - 1e-6


def section(meshes: MeshSet, referee: Labels, own: Labels) -> dict[str, Any]:
    """Labels of the voxels against those of the mesh: C's over the whole mesh, and our own."""
    bodies, reasons = [], []
    for paths in _batches(meshes.paths):
        logits = np.stack([np.where(surface_voxels(path), 1.0, -1.0) for path in paths])
        batch, why = bodies_from_occupancy(logits)
        bodies.append(batch)
        reasons += why
    everything = concatenate(bodies)
    simulate = functools.partial(drop, step="slim", reasons=reasons)
    rest, _ = readjudicate(everything, simulate(everything, PROTOCOL), PROTOCOL)
    labels = Labels.of(rest)
    return {
        "resolution": RESOLUTION,
        "invalid": int((rest.status == INVALID).sum()),
        "against_c_on_the_mesh": compare(meshes, labels, referee),
        "against_our_label_of_the_mesh": compare(meshes, labels, own),
    }


def _batches(paths: list) -> Iterator[list]:
    for first in range(0, len(paths), _BATCH):
        yield paths[first : first + _BATCH]


def surface_voxels(path, resolution: int = RESOLUTION) -> Bool[np.ndarray, "R R R"]:
    """Voxels that a mesh's surface passes through, its longest side as long as the grid."""
    mesh = load_mesh(path)
    vertices = upright(mesh.vertices, mesh.up, PROTOCOL)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    scaled = (vertices - (low + high) / 2) * (_INSIDE * resolution / (high - low).max())
    corners = (scaled + resolution / 2)[mesh.triangles]
    grid = np.zeros((resolution,) * 3, bool)
    for owner, voxel in _pairs(corners, resolution):
        hit = voxel[_overlap(corners[owner] - voxel[:, None] - 0.5)]
        grid[tuple(hit.T)] = True
    return grid


def _pairs(
    corners: Float[np.ndarray, "F 3 3"], resolution: int
) -> Iterator[tuple[Int[np.ndarray, " P"], Int[np.ndarray, "P 3"]]]:
    """Triangles with every voxel that their bounds touch, some at a time."""
    low = np.clip(np.floor(corners.min(axis=1)), 0, resolution - 1).astype(int)
    high = np.clip(np.floor(corners.max(axis=1)), 0, resolution - 1).astype(int)
    wide = high - low + 1
    total = np.cumsum(wide.prod(axis=1))
    begin = 0
    while begin < len(corners):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + _PAIRS, side="right")))
        counts = wide[begin:end].prod(axis=1)
        owner = np.repeat(np.arange(begin, end), counts)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        _, y, z = wide[owner].T
        steps = np.stack([place // (y * z), place // z % y, place % z], axis=1)
        yield owner, low[owner] + steps
        begin = end


def _overlap(triangle: Float[np.ndarray, "P 3 3"]) -> Bool[np.ndarray, " P"]:
    """Whether triangles meet the unit cube about the origin: no axis separates them."""
    edges = np.roll(triangle, -1, axis=1) - triangle
    normal = np.cross(edges[:, 0], edges[:, 1])
    hit = np.ones(len(triangle), bool)
    axes = [normal, *np.broadcast_to(np.eye(3)[:, None], (3, len(triangle), 3))]
    axes += [np.cross(edges[:, i], np.eye(3)[k]) for i in range(3) for k in range(3)]
    for axis in axes:
        along = np.einsum("pkj,pj->pk", triangle, axis)
        reach = 0.5 * np.abs(axis).sum(axis=1)
        hit &= (along.min(axis=1) <= reach) & (along.max(axis=1) >= -reach)
    return hit
