"""Files as they come from the wild: each bad one has its reason, and none costs much."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import trimesh

from sim_mjx import BodyError, body_from_mesh, mesh_files, obj
from sim_mjx.meshes import load_mesh
from tests.sim import plain_bodies, shapes

RAW = dataclasses.replace(shapes.EVAL, scaling="none")
# Bad files are refused before they cost anything; seconds, generous for a busy machine.
SOON = 5.0


def glb(tree: dict, binary: bytes = b"") -> bytes:
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def tetrahedron(**changes) -> tuple[dict, bytes]:
    """A document with one mesh in one node, and its buffer."""
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4")
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], "<u2")
    tree = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 12, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteLength": 48},
            {"buffer": 0, "byteOffset": 48, "byteLength": 24},
        ],
        "buffers": [{"byteLength": 72}],
    }
    return {**tree, **changes}, points.tobytes() + faces.tobytes()


def reason_of(path, protocol=shapes.EVAL) -> str:
    began = time.monotonic()
    with pytest.raises(BodyError) as error:
        body_from_mesh(path, protocol)
    assert time.monotonic() - began < SOON
    assert str(path) in str(error.value) or error.value.reason in ("flat", "not_a_file")
    return error.value.reason


def write(path, data: bytes):
    path.write_bytes(data)
    return path


def test_a_folder_with_a_mesh_name(tmp_path):
    (tmp_path / "chair.glb").mkdir()
    assert reason_of(tmp_path / "chair.glb") == "not_a_file"


def test_a_zip_bomb(tmp_path):
    """A hundred megabytes of XML in a hundred kilobytes of 3MF."""
    path = tmp_path / "bomb.3mf"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", b"<model>" + b" " * (100 * 2**20))
    assert path.stat().st_size < 2**20
    assert reason_of(path) == "too_large"


def test_a_zip_bomb_that_lies_about_its_size(tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", b"<model>" + b" " * (20 * 2**20))
    size = struct.pack("<I", 7 + 20 * 2**20)
    assert data.getvalue().count(size) == 2
    lie = data.getvalue().replace(size, struct.pack("<I", 1000))
    assert reason_of(write(tmp_path / "lie.3mf", lie)) == "not_a_mesh"


def test_xml_that_grows(tmp_path):
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    text = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">{entities}]><x>&l9;</x>'
    assert reason_of(write(tmp_path / "laughs.dae", text.encode())) == "not_a_mesh"


@pytest.mark.parametrize("kind", ["obj", "stl", "ply", "glb"])
def test_two_million_faces(kind, tmp_path):
    count = 2_000_000
    path = tmp_path / f"many.{kind}"
    if kind == "obj":
        path.write_bytes(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n" + b"f 1 2 3\n" * count)
    elif kind == "stl":
        path.write_bytes(bytes(80) + struct.pack("<I", count) + bytes(50 * count))
    elif kind == "ply":
        header = f"ply\nformat ascii 1.0\nelement vertex 3\nelement face {count}\nend_header\n"
        path.write_bytes(header.encode())
    else:  # a small file that places one mesh often
        tree, _ = tetrahedron(nodes=[{"mesh": 0}] * 20, scenes=[{"nodes": list(range(20))}])
        tree["accessors"] = [
            {"componentType": 5126, "count": 4, "type": "VEC3"},
            {"componentType": 5125, "count": 3 * count // 20, "type": "SCALAR"},
        ]
        path.write_bytes(glb(tree))
    assert reason_of(path) == "too_many_faces"


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "large.obj"
    with path.open("wb") as file:
        file.truncate(2**32)
    assert reason_of(path) == "too_large"


@pytest.mark.parametrize("at", [3, 11, 19, 30, 400, 500, -60, -1])
def test_truncated_glb(at, tmp_path):
    whole = glb(*tetrahedron())
    assert len(load_mesh(write(tmp_path / "whole.glb", whole)).triangles) == 4
    assert reason_of(write(tmp_path / "cut.glb", whole[:at])) == "not_a_mesh"


BAD_TREES = {
    "not a tree": {"nodes": [{"mesh": 0, "children": [0]}]},
    "exponential": {"nodes": [{"children": [i + 1] * 9} for i in range(40)] + [{"mesh": 0}]},
    "no such mesh": {"nodes": [{"mesh": 7}]},
    "no such scene": {"scene": 3},
    "huge array": {"accessors": [{"componentType": 5126, "count": 2**40, "type": "VEC3"}] * 2},
    "beyond its buffer": {"bufferViews": [{"buffer": 0, "byteLength": 12}] * 2},
    "negative offset": {"bufferViews": [{"buffer": 0, "byteOffset": -9, "byteLength": 48}] * 2},
    "zero quaternion": {"nodes": [{"mesh": 0, "rotation": [0, 0, 0, 0]}]},
    "wrong types": {"nodes": "none", "scenes": 5},
    "elsewhere": {"buffers": [{"uri": "https://example.org/a.bin", "byteLength": 72}]},
    "a folder": {"buffers": [{"uri": "..", "byteLength": 72}]},
}


@pytest.mark.parametrize("name", BAD_TREES)
def test_contradictory_gltf(name, tmp_path):
    data = glb(*tetrahedron(**BAD_TREES[name]))
    assert reason_of(write(tmp_path / "bad.glb", data)) in ("not_a_mesh", "not_a_file")


def test_nan_in_a_binary_file(tmp_path):
    tree, binary = tetrahedron()
    data = glb(tree, struct.pack("<f", np.nan) + binary[4:])
    assert reason_of(write(tmp_path / "nan.glb", data)) == "nan_vertices"
    scaled = tetrahedron(nodes=[{"mesh": 0, "scale": [1e308, 1e308, 1e308]}])[0]
    huge = struct.pack("<f", 1e30) + binary[4:]
    assert reason_of(write(tmp_path / "inf.glb", glb(scaled, huge))) == "nan_vertices"


def test_empty_and_compressed_gltf(tmp_path):
    tree, binary = tetrahedron(scenes=[{"nodes": []}])
    assert reason_of(write(tmp_path / "empty.glb", glb(tree, binary))) == "empty"
    tree, binary = tetrahedron(extensionsRequired=["KHR_draco_mesh_compression"])
    assert reason_of(write(tmp_path / "draco.glb", glb(tree, binary))) == "unsupported"


def test_gltf_primitives_of_every_kind(tmp_path):
    """Strips, fans, sparse and normalised arrays, matrices, nested nodes, points beside a mesh."""
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [9, 9, 9]], "<f4")
    sparse = struct.pack("<H2x3f", 4, 2.0, 2.0, 1.0)
    view = {"buffer": 0, "byteOffset": 60}
    tree = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [
            {"children": [1], "translation": [0, 0, 5]},
            {"mesh": 0, "matrix": [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1]},
        ],
        "meshes": [
            {
                "primitives": [
                    {"attributes": {"POSITION": 0}, "mode": 5},
                    {"attributes": {"POSITION": 0}, "mode": 6},
                    {"attributes": {"POSITION": 0}, "mode": 0},
                ]
            }
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5126,
                "count": 5,
                "type": "VEC3",
                "sparse": {
                    "count": 1,
                    "indices": {"bufferView": 1, "componentType": 5123},
                    "values": {"bufferView": 1, "byteOffset": 4},
                },
            }
        ],
        "bufferViews": [{"buffer": 0, "byteLength": 60}, {**view, "byteLength": 16}],
        "buffers": [{"byteLength": 76}],
    }
    mesh = load_mesh(write(tmp_path / "kinds.glb", glb(tree, square.tobytes() + sparse)))
    expected = np.array([[0, 1, 5], [2, 1, 5], [0, 2, 5], [2, 2, 5], [4, 3, 6]])
    points = mesh.vertices[mesh.triangles]
    strip = expected[[[0, 1, 2], [2, 1, 3], [2, 3, 4]]]
    fan = expected[[[0, 1, 2], [0, 2, 3], [0, 3, 4]]]
    np.testing.assert_allclose(points, np.concatenate([strip, fan]))


OBJ_TEXTS = {
    "slashes": "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvn 0 0 1\n"
    "f 1/1 3/1 2/1\nf 1//1 2//1 4//1\nf 1/1/1 4/1/1 3/1/1\nf 2/1/1 3/1/1 4/1/1\n",
    "negative": "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
    "f -4 -2 -3\nf -4 -3 -1\nf -4 -1 -2\nf -3 -2 -1",
    "windows": "v 0 0 0\r\nv 1 0 0\r\nv 0 1 0\r\nv 0 0 1\r\n"
    "f 1 3 2\r\nf 1 2 4\r\nf 1 4 3\r\nf 2 3 4",
    "old mac": "v 0 0 0\rv 1 0 0\rv 0 1 0\rv 0 0 1\rf 1 3 2\rf 1 2 4\rf 1 4 3\rf 2 3 4",
    "indented": "  v 0 0 0\n\tv 1 0 0\n  v 0 1 0\nv\t0 0 1\n f 1 3 2\nf\t1 2 4\n  f 1 4 3\nf 2 3 4",
    "remarks": "# v 9 9 9\nv 0 0 0 # a\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2 # b 7\nf 1 2 4\n"
    "f 1 4 3\nf 2 3 4\n",
    "continued": "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 \\\n1\nf 1 \\\r\n3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4",
    "coloured": "v 0 0 0 1 0 0\nv 1 0 0 1 0 0\nv 0 1 0\nv 0 0 1 1\n"
    "f 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4",
    "parts": "o a\nv 0 0 0\nv 1 0 0\nv 0 1 0\ng x\nusemtl y\ns off\nf 1 3 2\no b\nv 0 0 1\n"
    "f 1 2 4\nl 1 2\nf 1 4 3\np 1\nf 2 3 4\nf 1 2\n",
}


@pytest.mark.parametrize("name", OBJ_TEXTS)
def test_obj_dialects(name):
    vertices, triangles = obj.parse_obj(OBJ_TEXTS[name].encode())
    np.testing.assert_array_equal(vertices, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(triangles, [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


@pytest.mark.parametrize(
    "faces",
    ["f 1 2 3 4\nf 1 2 6 5\n", "f 1 2 3 4\nf 1 2 6\n", "f 1 2 3 4 5 6\nf 1 2 3 4\nf 4 5 6\n"],
    ids=["quads", "mixed", "polygons"],
)
def test_polygons_are_split_as_trimesh_splits_them(faces, tmp_path):
    points = np.random.default_rng(0).normal(size=(6, 3))
    text = "".join(f"v {x} {y} {z}\n" for x, y, z in points.tolist()) + faces
    path = write(tmp_path / "a.obj", text.encode())
    mesh, plain = load_mesh(path), plain_bodies.load(path)
    np.testing.assert_array_equal(mesh.vertices[mesh.triangles], plain[0][plain[1]])


@pytest.mark.parametrize(
    "text",
    ["v 0 0\nf 1 1 1\n", "v 0 0 x\nf 1 1 1\n", "v 0 0 0\nf 1 2 3\n", "v 0 0 0\nf 0 1 1\n",
     "v 0 0 0\nf a b c\n", "v 0 0 0\nf 1.5 1 1\n", "v 0 0 0\nf 1 1 -2\n"],
)  # fmt: skip
def test_malformed_obj(text, tmp_path):
    assert reason_of(write(tmp_path / "bad.obj", text.encode())) == "not_a_mesh"


def test_millimetres_taken_for_metres(tmp_path):
    """Raw units must be metres; a scaled protocol does not care."""
    cube = shapes.box(1500, 1500, 1500)
    cube.export(tmp_path / "large.stl")
    assert reason_of(tmp_path / "large.stl", RAW) == "scale"
    small = shapes.box(1e-4, 1e-4, 1e-4)
    small.export(tmp_path / "small.stl")
    assert reason_of(tmp_path / "small.stl", RAW) == "scale"
    assert body_from_mesh(tmp_path / "large.stl", shapes.EVAL).mass[0] == pytest.approx(1000)


def test_surfaces_that_are_no_manifold(tmp_path):
    """Three triangles on an edge, doubled faces, a fin: `legacy` takes all, `exact` says why."""
    cube = shapes.box(1, 1, 1)
    fin = trimesh.Trimesh([[0, 0, 0.5], [0.5, 0, 0.5], [0, 0, 0.9]], [[0, 1, 2]])
    both = trimesh.util.concatenate([cube, cube, fin])
    both.export(tmp_path / "odd.obj")
    body = body_from_mesh(tmp_path / "odd.obj", shapes.EVAL)
    assert np.isfinite(body.inertia).all() and body.provenance[0].fallback is None
    exact = dataclasses.replace(shapes.EVAL, inertia="exact")
    assert body_from_mesh(tmp_path / "odd.obj", exact).provenance[0].fallback == "mixed_winding"


def test_no_image_library_and_no_images_are_needed(tmp_path):
    """Textures are neither decoded nor missed, in any format that can name one."""
    image = {"uri": "absent.png"}
    tree, binary = tetrahedron(
        images=[image],
        textures=[{"source": 0}],
        materials=[{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
    )
    tree["meshes"][0]["primitives"][0]["material"] = 0
    write(tmp_path / "a.glb", glb(tree, binary))
    text = "mtllib absent.mtl\nusemtl x\n" + OBJ_TEXTS["slashes"]
    write(tmp_path / "a.obj", text.encode())
    cube = shapes.box(1, 1, 1)
    for kind in ("ply", "dae", "3mf", "stl", "off"):
        cube.export(tmp_path / f"a.{kind}")
    dae = (tmp_path / "a.dae").read_text(encoding="utf-8")
    named = (
        '<library_images><image id="i"><init_from>absent.png</init_from></image></library_images>'
    )
    assert "<library_geometries>" in dae
    dae = dae.replace("<library_geometries>", named + "<library_geometries>")
    (tmp_path / "a.dae").write_text(dae, encoding="utf-8")
    ply = (tmp_path / "a.ply").read_bytes()
    assert b"\nelement vertex" in ply
    ply = ply.replace(b"\nelement vertex", b"\ncomment TextureFile absent.png\nelement vertex")
    (tmp_path / "a.ply").write_bytes(ply)
    program = (
        "import sys, pathlib\n"
        "sys.modules['PIL'] = sys.modules['PIL.Image'] = None\n"
        "from sim_mjx.meshes import load_mesh\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    assert len(load_mesh(path).triangles)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=shapes.DATA.parents[1],
    )
    assert done.returncode == 0, done.stderr


def test_faces_that_name_no_vertex(tmp_path):
    text = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
    text += b"property float z\nelement face 1\nproperty list uchar int vertex_indices\n"
    text += b"end_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n"
    assert reason_of(write(tmp_path / "bad.ply", text)) == "not_a_mesh"


def test_suffixes_know_no_case(tmp_path):
    write(tmp_path / "A.GLB", glb(*tetrahedron()))
    assert len(load_mesh(tmp_path / "A.GLB").triangles) == 4
    assert mesh_files.is_whole("glb", b'{"uri": "a.bin"}')
    assert not mesh_files.is_whole("gltf", b'{"uri" : "a.bin"}')
    assert mesh_files.is_whole("gltf", b'{"uri": "data:application/octet-stream;base64,AA"}')
