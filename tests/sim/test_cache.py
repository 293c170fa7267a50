"""The cache of bodies: what finds an entry, what does not, and entries that are none."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from sim_mjx import buckets, cache, meshes
from sim_mjx.prepare import CacheError, prepare
from sim_mjx.world import simulation_body
from tests.sim import shapes

MESHES = sorted((shapes.DATA / "meshes").glob("*.obj"))[:8]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch):
    """Counts the bodies that are made from a mesh."""
    calls = []
    original = meshes.body_from_triangles

    def counted(mesh, protocol):
        calls.append(mesh.source)
        return original(mesh, protocol)

    monkeypatch.setattr(meshes, "body_from_triangles", counted)
    return calls


def run(folder, paths=MESHES, protocol=shapes.EVAL):
    return list(prepare(paths, protocol, workers=0, cache=folder))


def arrays(body):
    table = body.polygons
    names = ("points", "mass", "com", "inertia", "inertia_quat")
    parts = [getattr(body, name) for name in names]
    return [*parts, table.start, table.count, table.normals, table.contacts]


def assert_same(first, second):
    assert (first.reason, first.sha256) == (second.reason, second.sha256)
    assert first.body.provenance == second.body.provenance
    assert first.body.polygons.window == second.body.polygons.window
    for a, b in zip(arrays(first.body), arrays(second.body), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_the_second_run_makes_nothing_and_gives_the_same_bits(folder, made):
    first = run(folder)
    assert len(made) == len(MESHES)
    for one, two in zip(first, run(folder), strict=True):
        assert_same(one, two)
    assert len(made) == len(MESHES)
    workers = prepare(MESHES, shapes.EVAL, workers=1, cache=folder)
    for one, two in zip(first, workers, strict=True):
        assert_same(one, two)


def test_only_what_makes_the_body_counts(folder, made):
    """Everything else of a protocol leaves the bodies as they are."""
    run(folder)
    other = dataclasses.replace(
        shapes.EVAL, timestep=2e-3, contact="skin", measure="tilt", friction=0.5, early_stop=False
    )
    run(folder, protocol=other)
    assert len(made) == len(MESHES)
    changes = {"density": 500.0, "inertia": "convex", "scaling": "none", "up": "z"}
    changes["up_turn"] = "swap"
    assert set(changes) == set(cache.BODY_FIELDS)
    for count, (name, value) in enumerate(changes.items(), 2):
        run(folder, protocol=dataclasses.replace(shapes.EVAL, **{name: value}))
        assert len(made) == count * len(MESHES)


def test_body_fields_are_what_is_read_to_make_a_body():
    """A field that comes to decide bodies must be named in BODY_FIELDS."""
    read = set()

    class Watched:
        def __getattr__(self, name):
            read.add(name)
            return getattr(shapes.EVAL, name)

    meshes.body_from_mesh(MESHES[0], Watched())  # pyright: ignore[reportArgumentType]
    assert read == set(cache.BODY_FIELDS)


def test_a_copy_elsewhere_finds_the_entry_under_its_own_name(folder, made, tmp_path):
    run(folder)
    copy = tmp_path / "copy.obj"
    shutil.copy(MESHES[0], copy)
    (row,) = run(folder, [copy])
    assert len(made) == len(MESHES)
    assert row.body is not None and row.body.provenance[0].source == str(copy)
    other_format = tmp_path / "copy.off"
    shutil.copy(MESHES[0], other_format)
    (row,) = run(folder, [other_format])
    assert row.reason == "not_a_mesh"


def test_reasons_are_kept_too(folder, made, tmp_path):
    flat = tmp_path / "flat.obj"
    flat.write_bytes(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (first,) = run(folder, [flat])
    (second,) = run(folder, [flat])
    assert (first.reason, first.message) == (second.reason, second.message)
    assert first.reason == "flat" and first.message.startswith(f"{flat}: ")
    assert len(made) == 1


@pytest.mark.parametrize("fault", ["cut", "flipped", "empty", "foreign"])
def test_a_broken_entry_is_made_again(folder, made, fault):
    (first,) = run(folder, MESHES[:1])
    (entry,) = folder.rglob("*.body")
    whole = entry.read_bytes()
    middle = len(whole) // 2
    broken = {
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "foreign": whole.replace(b"dso-body 1", b"dso-body 0"),
    }
    entry.write_bytes(broken[fault])
    (second,) = run(folder, MESHES[:1])
    assert len(made) == 2
    assert entry.read_bytes() == whole
    assert_same(first, second)


def test_other_versions_of_the_arithmetic_find_nothing(folder, made, monkeypatch):
    run(folder, MESHES[:1])
    monkeypatch.setattr(cache, "_REVISION", cache._REVISION + 1)
    run(folder, MESHES[:1])
    assert len(made) == 2


def test_thinned_hulls_come_back(folder, tmp_path, monkeypatch):
    """More hull vertices than the largest bucket: what is kept is what was thinned."""
    monkeypatch.setattr(buckets, "BUCKETS", buckets.BUCKETS[:2])
    ball = np.random.default_rng(0).normal(size=(600, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    faces = [(1, i, i + 1) for i in range(2, 600)]
    path = tmp_path / "ball.obj"
    lines = [f"v {x} {y} {z}" for x, y, z in ball.tolist()]
    path.write_text("\n".join(lines + [f"f {a} {b} {c}" for a, b, c in faces]), encoding="utf-8")
    (first,) = run(folder, [path])
    assert first.body is not None and first.body.provenance[0].hull_points == 600
    (second,) = run(folder, [path])
    assert_same(first, second)


def test_a_gltf_with_files_beside_it_is_not_kept(folder, made, tmp_path):
    """Its own bytes do not say what its buffers hold."""
    import trimesh
    from trimesh.exchange.gltf import export_gltf

    for name, data in export_gltf(trimesh.Scene(shapes.box(1, 1, 1))).items():
        (tmp_path / name).write_bytes(data)
    for _ in range(2):
        (row,) = run(folder, [tmp_path / "model.gltf"])
        assert row.body is not None
    assert len(made) == 2


def test_a_folder_that_is_none(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(CacheError, match="file"):
        run(path)


def test_kept_bodies_can_be_simulated(folder):
    run(folder, MESHES[:1])
    (row,) = run(folder, MESHES[:1])
    assert row.body is not None
    assert simulation_body(row.body, shapes.EVAL).points.shape == row.body.points.shape
