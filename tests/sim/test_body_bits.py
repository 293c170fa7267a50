"""The fast way to a body gives the bits of the plain way, on every committed mesh."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from sim_mjx.corners import contact_corners
from sim_mjx.hull import convex_hull
from sim_mjx.mass_properties import mass_properties
from sim_mjx.meshes import load_mesh
from tests.sim import plain_bodies, shapes

MESHES = sorted((shapes.DATA / "meshes").glob("*.obj"))


def assert_same_bits(ours, plain):
    ours, plain = np.asarray(ours), np.asarray(plain)
    assert ours.shape == plain.shape
    assert ours.tobytes() == plain.astype(ours.dtype).tobytes()


def check_hull(vertices):
    hull = convex_hull(vertices)
    corners, polygons, normals = plain_bodies.polygons(vertices)
    assert_same_bits(hull.vertices, corners)
    assert_same_bits(hull.normals, normals)
    assert_same_bits(hull.sizes, [len(polygon) for polygon in polygons])
    assert_same_bits(hull.corners, np.concatenate(polygons))
    table = contact_corners(hull.corners, hull.sizes, hull.vertices)
    large = [(i, p) for i, p in enumerate(polygons) if len(p) < 40]
    first = np.cumsum(hull.sizes) - hull.sizes
    for i, polygon in large:
        rows = table[first[i] : first[i] + len(polygon)]
        assert_same_bits(rows, plain_bodies.contacts(polygon, corners))


@pytest.mark.parametrize("path", MESHES, ids=lambda path: path.stem)
def test_committed_meshes(path):
    mesh = load_mesh(path)
    vertices, triangles = plain_bodies.load(path)
    assert_same_bits(mesh.vertices, vertices)
    assert_same_bits(mesh.triangles, triangles)
    vertices = vertices * (0.5 / np.abs(vertices).max())
    check_hull(vertices)
    ours = mass_properties(vertices, triangles, convex_hull(vertices), "legacy")
    volume, com, tensor = plain_bodies.integrals(vertices, triangles)
    assert_same_bits(ours.volume, volume)
    assert_same_bits(ours.com, com)
    assert_same_bits(ours.tensor, tensor)


@pytest.mark.parametrize(
    "mesh",
    [
        trimesh.creation.cylinder(0.3, 1.0, sections=33),
        trimesh.creation.cone(0.3, 1.0, sections=24),
        trimesh.creation.annulus(0.2, 0.4, 0.3, sections=30),
        trimesh.creation.capsule(1.0, 0.3),
    ],
    ids=["cylinder", "cone", "annulus", "capsule"],
)
def test_many_sided_faces(mesh):
    """Regular polygons, where quadrilaterals tie in area but for their last bits."""
    check_hull(np.asarray(mesh.vertices, np.float64))


@pytest.mark.parametrize("kind", ["glb", "obj", "stl", "ply", "off"])
def test_files_give_what_trimesh_gives(kind, tmp_path):
    scene = trimesh.Scene()
    turned = trimesh.transformations.euler_matrix(0.1, 0.2, 0.3)
    scene.add_geometry(trimesh.creation.icosphere(2), transform=turned)
    mirrored = trimesh.transformations.scale_matrix(-0.5, [1, 2, 3])
    scene.add_geometry(trimesh.creation.cylinder(0.3, 1.0, sections=12), transform=mirrored)
    path = tmp_path / f"scene.{kind}"
    scene.export(path) if kind == "glb" else scene.to_geometry().export(path)
    mesh = load_mesh(path)
    vertices, triangles = plain_bodies.load(path)
    assert_same_bits(mesh.vertices, vertices)
    assert_same_bits(mesh.triangles, triangles)
