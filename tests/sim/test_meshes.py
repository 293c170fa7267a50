"""Mesh files as they come: formats, axes, welding, and a reason for whatever cannot be used."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh
from trimesh.exchange.gltf import export_gltf

from sim_mjx import BodyError, body_from_mesh, referee
from sim_mjx.meshes import Mesh, body_from_triangles, load_mesh, upright, weld
from tests.sim import shapes

NAME = "rangeHood"  # asymmetric, and it falls
FORMATS = ("glb", "gltf", "stl", "ply", "dae", "off", "3mf", "obj")
# STL and GLB store float32; a scaled copy of the same mesh differs in the last bits.
FLOAT32 = 1e-5


@pytest.fixture(scope="module")
def original() -> Mesh:
    return load_mesh(shapes.mesh_path(NAME))


@pytest.fixture(scope="module")
def files(original, tmp_path_factory):
    """The mesh in every format, in the axes that the format implies."""
    folder = tmp_path_factory.mktemp("formats")
    y_up = trimesh.Trimesh(original.vertices, original.triangles, process=False)
    z_up = y_up.copy()
    z_up.vertices = upright(original.vertices, "y", shapes.EVAL)
    for kind in FORMATS:
        mesh = y_up if kind in ("glb", "gltf", "obj", "dae") else z_up
        if kind == "gltf":
            parts = export_gltf(trimesh.Scene(mesh))
            for name, data in parts.items():
                (folder / name.replace("model.gltf", "mesh.gltf")).write_bytes(data)
        else:
            mesh.export(folder / f"mesh.{kind}")
    return folder


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_give_the_same_body(kind, files, original):
    expected = body_from_triangles(original, shapes.EVAL)
    body = body_from_mesh(files / f"mesh.{kind}", shapes.EVAL)
    np.testing.assert_allclose(body.mass, expected.mass, rtol=FLOAT32)
    np.testing.assert_allclose(body.com, expected.com, atol=FLOAT32)
    np.testing.assert_allclose(body.inertia, expected.inertia, rtol=FLOAT32)
    assert body.provenance[0].hull_points == expected.provenance[0].hull_points
    assert len(body.provenance[0].sha256) == 64


def test_scene_transforms_are_applied(tmp_path):
    scene = trimesh.Scene()
    lifted = trimesh.transformations.translation_matrix([0, 3, 0])
    scene.add_geometry(shapes.box(1, 1, 1), node_name="low")
    scene.add_geometry(shapes.box(1, 1, 1), node_name="high", transform=lifted)
    scene.export(tmp_path / "two.glb")
    mesh = load_mesh(tmp_path / "two.glb")
    np.testing.assert_allclose(mesh.vertices.max(axis=0), [0.5, 3.5, 0.5])
    raw = dataclasses.replace(shapes.EVAL, scaling="none")
    body = body_from_mesh(tmp_path / "two.glb", raw)
    np.testing.assert_allclose(body.com[0], [0, 0, 1.5], atol=1e-6)


def test_materials_need_not_be_there(tmp_path):
    text = "mtllib absent.mtl\nusemtl wood\n"
    path = tmp_path / "chair.obj"
    path.write_text(text + shapes.mesh_path("tatami").read_text(encoding="utf-8"), encoding="utf-8")
    bare = body_from_mesh(shapes.mesh_path("tatami"), shapes.EVAL)
    np.testing.assert_array_equal(body_from_mesh(path, shapes.EVAL).points, bare.points)


def test_a_dae_says_which_way_is_up(files, tmp_path):
    text = (files / "mesh.dae").read_text(encoding="utf-8")
    assert load_mesh(files / "mesh.dae").up == "y"
    turned = tmp_path / "z.dae"
    assert "<up_axis>" in text
    turned.write_text(text.replace("Y_UP", "Z_UP"), encoding="utf-8")
    assert load_mesh(turned).up == "z"


def test_up_axis(original):
    """The file's axis, the proper rotation, DSO's mirror, and an override."""
    x, y, z = original.vertices.T
    turned = upright(original.vertices, "y", shapes.EVAL)
    np.testing.assert_array_equal(turned, np.stack([x, -z, y], axis=1))
    swap = dataclasses.replace(shapes.EVAL, up_turn="swap")
    mirrored = upright(original.vertices, "y", swap)
    np.testing.assert_array_equal(mirrored, original.vertices[:, [0, 2, 1]])
    lying = dataclasses.replace(shapes.EVAL, up="z")
    height = [np.ptp(body_from_triangles(original, p).body_points()[0, :, 2])
              for p in (shapes.EVAL, lying)]  # fmt: skip
    size = 0.5 / np.abs(original.vertices - original.vertices.mean(axis=0)).max()
    np.testing.assert_allclose(height, [np.ptp(y) * size, np.ptp(z) * size], rtol=1e-6)
    bodies = [body_from_triangles(original, p) for p in (shapes.EVAL, swap)]
    labels = [referee.drop(body, shapes.EVAL).stable(shapes.EVAL)[0] for body in bodies]
    assert labels == [False, False]


def test_scaling(original):
    vertices = body_from_triangles(original, shapes.EVAL).body_points()[0]
    assert np.abs(vertices).max() == pytest.approx(0.5, abs=1e-6)
    raw = dataclasses.replace(shapes.EVAL, scaling="none")
    vertices = body_from_triangles(original, raw).body_points()[0]
    turned = upright(original.vertices, "y", raw)
    np.testing.assert_allclose(vertices.min(axis=0), turned.min(axis=0), rtol=1e-5)


def test_weld():
    """Duplicates become one vertex, vertices of no triangle go, triangles stay."""
    vertices = np.array([[9.0, 9, 9], [0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1e-10], [0, 0, 1]])
    triangles = np.array([[1, 2, 3], [4, 3, 5]])
    welded, faces = weld(vertices, triangles)
    assert len(welded) == 4
    np.testing.assert_allclose(welded[faces], vertices[triangles], atol=1e-9)


CASES = {
    "text.obj": (b"hello\n", "not_a_mesh"),
    "zero.obj": (b"", "empty"),
    "points.obj": (b"v 0 0 0\nv 1 1 1\n", "empty"),
    "flat.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 2 4 3\n", "flat"),
    "spot.obj": (b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "flat"),
    "nan.obj": (b"v nan 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n", "nan_vertices"),
    "inf.obj": (b"v inf 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n", "nan_vertices"),
    "cut.glb": (b"glTF\x02\x00\x00\x00garbage", "not_a_mesh"),
    "no.gltf": (b"{}", "not_a_mesh"),
    "cut.stl": (bytes(range(256)) * 20, "not_a_mesh"),
    "cut.ply": (b"ply\nformat ascii 1.0\nelement vertex 9\n", "not_a_mesh"),
    "cut.dae": (b"<xml", "not_a_mesh"),
    "cut.3mf": (b"PK\x03\x04", "not_a_mesh"),
    "cut.off": (b"OFF\n", "not_a_mesh"),
    "photo.jpg": (b"\xff\xd8", "unsupported"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_contents_have_a_reason(name, tmp_path):
    data, reason = CASES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BodyError) as error:
        body_from_mesh(path, shapes.EVAL)
    assert error.value.reason == reason


def test_inertia_modes_and_their_fallback_are_recorded(original):
    wanted = dataclasses.replace(shapes.EVAL, inertia="exact")
    closed = shapes.from_trimesh(shapes.box(1, 2, 3))
    entry = body_from_triangles(closed, wanted).provenance[0]
    assert (entry.inertia, entry.fallback) == ("exact", None)
    entry = body_from_triangles(load_mesh(shapes.mesh_path("horse2")), wanted).provenance[0]
    assert entry.inertia == "convex"
    assert entry.fallback in ("mixed_winding", "negative_volume", "no_volume")


def test_hulls_of_any_size_fit_a_bucket():
    """More vertices than the largest bucket holds: thinned to it, mass kept."""
    ball = shapes.from_trimesh(trimesh.creation.icosphere(6, 0.5))
    body = body_from_triangles(ball, shapes.EVAL)
    assert body.provenance[0].hull_points > 16384 >= body.points.shape[1]
    np.testing.assert_allclose(body.mass, 1000 * np.pi / 6, rtol=1e-3)
    heights = body.body_points()[0, :, 2]
    np.testing.assert_allclose([heights.min(), heights.max()], [-0.5, 0.5], atol=1e-3)


def test_many_sided_corner_takes_a_wider_bucket():
    """The tip of a cone meets as many faces as its base has sides."""
    cone = shapes.from_trimesh(trimesh.creation.cone(0.3, 1.0, sections=48))
    body = body_from_triangles(cone, shapes.EVAL)
    assert body.provenance[0].hull_points < 64
    assert body.points.shape[1] == 256
    polygons = body.polygons
    assert polygons is not None
    assert polygons.count.max() == 48 <= polygons.window
