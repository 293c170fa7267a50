"""Mesh faults: each is seen where it was made, and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh

from dso_jax.evaluation.faults import Faults, faults
from sim_mjx.meshes import Mesh, load_mesh, weld
from tests.sim import shapes

SOUND = dict.fromkeys((f.name for f in dataclasses.fields(Faults)), 0) | {"parts": 1}


def box(size: float = 1.0, at=(0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    made = trimesh.creation.box(extents=(size,) * 3)
    made.apply_translation(at)
    return made


def inverted(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces[:, ::-1], process=False)


def together(*meshes: trimesh.Trimesh) -> Mesh:
    offsets = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=False)]
    return Mesh(*weld(np.concatenate([m.vertices for m in meshes]), np.concatenate(faces)))


def less(mesh: trimesh.Trimesh, *rows: int) -> trimesh.Trimesh:
    """Without some triangles."""
    return trimesh.Trimesh(mesh.vertices, np.delete(mesh.faces, rows, axis=0), process=False)


def also(mesh: trimesh.Trimesh, *faces) -> trimesh.Trimesh:
    """With more triangles."""
    return trimesh.Trimesh(mesh.vertices, np.concatenate([mesh.faces, faces]), process=False)


def one_turned(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    faces = mesh.faces.copy()
    faces[0] = faces[0, ::-1]
    return trimesh.Trimesh(mesh.vertices, faces, process=False)


ball = trimesh.creation.icosphere(subdivisions=2)
CASES = {
    "a box": (together(box()), {}),
    "two boxes apart": (together(box(), box(at=(3, 0, 0))), {"parts": 2}),
    "a hole": (together(less(ball, 5)), {"open_edges": 3, "holes": 1}),
    "two holes": (together(less(ball, 5, 200)), {"open_edges": 6, "holes": 2}),
    "one triangle turned": (together(one_turned(box())), {"mixed_edges": 3}),
    "inside out": (together(inverted(ball)), {"inside_out": 1}),
    "a hollow": (together(box(), inverted(box(0.5))), {"parts": 2, "cavities": 1}),
    "a doubled wall": (together(ball, box(0.5)), {"parts": 2, "inner_shells": 1}),
    "a solid in a hollow": (
        together(box(), inverted(box(0.5)), box(0.2)),
        {"parts": 3, "cavities": 1},
    ),
    "beside, within the box around": (
        together(trimesh.creation.annulus(1.0, 2.0, 1.0), box(0.5)),
        {"parts": 2},
    ),
    "crumbs": (
        together(box(), box(0.005, (0.6, 0, 0)), box(0.005, (0.6, 0.1, 0))),
        {"parts": 3, "crumbs": 2},
    ),
    "a triangle twice": (together(also(box(), box().faces[0])), {"doubled": 1, "crowded_edges": 3}),
    "a triangle of no area": (
        together(also(box(), [0, 0, 1])),
        {"degenerate": 1},
    ),
    "nothing but a line": (
        Mesh(np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([[0, 1, 1]])),
        {"degenerate": 1, "parts": 0},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_seen_and_no_other(name):
    mesh, expected = CASES[name]
    assert dataclasses.asdict(faults(mesh)) == SOUND | expected


def test_watertight_is_what_signed_volumes_need():
    assert faults(CASES["a hollow"][0]).watertight
    for name in ("a hole", "one triangle turned", "a triangle twice"):
        assert not faults(CASES[name][0]).watertight


def test_counts_of_a_real_mesh_are_trimesh_s():
    mesh = load_mesh(shapes.mesh_path("outdoorLamp"))
    found = faults(mesh)
    other = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)
    edges, count = np.unique(np.sort(other.edges, axis=1), axis=0, return_counts=True)
    real = edges[:, 0] != edges[:, 1]
    assert found.open_edges == (count[real] == 1).sum()
    assert found.parts == other.body_count
