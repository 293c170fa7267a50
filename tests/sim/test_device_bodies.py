"""Bodies made on the device against those of the host, and their labels."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh

from sim_mjx import Protocol, ProtocolError, concatenate, device_bodies, meshes, referee
from sim_mjx.device_bodies import bodies_on_device, mass_integrals, pad, support_points
from sim_mjx.mass_properties import winding_fault
from sim_mjx.plan import PlanError
from sim_mjx.prepare import prepare
from sim_mjx.prepare_device import prepare_on_device
from sim_mjx.surfaces import Surface, surface_of
from tests.sim import jobs, shapes

# Double precision on both sides; only the order of sums differs. Principal axes of objects with two
# nearly equal moments may turn, moments do not.
AGREE = 1e-9
# Single precision loses this much in sums over some thousand triangles.
AGREE_SINGLE = 1e-5


@pytest.fixture(scope="module")
def loaded():
    paths = sorted((shapes.DATA / "meshes").glob("*.obj"))
    return [meshes.load_mesh(path) for path in paths]


def upright(loaded):
    return [surface_of(mesh, shapes.EVAL) for mesh in loaded]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Two programs of few lanes: compiling is what costs here."""
    monkeypatch.setattr(device_bodies, "BUCKETS", (1024, 4096))
    monkeypatch.setattr(device_bodies, "_BATCH_VERTICES", 2**13)


@pytest.mark.parametrize("mode", ["legacy", "exact", "convex"])
def test_mass_agrees_with_the_host(loaded, mode):
    protocol = Protocol(inertia=mode)
    made = {}
    for index, bodies in bodies_on_device([surface_of(m, protocol) for m in loaded], protocol):
        made.update({i: bodies[k] for k, i in enumerate(index)})
    for i, mesh in enumerate(loaded):
        host = meshes.body_from_triangles(mesh, protocol)
        assert (i in made) == (host.provenance[0].fallback is None), mesh.source
        if i not in made:
            continue
        body = made[i]
        np.testing.assert_allclose(body.mass, host.mass, rtol=AGREE)
        np.testing.assert_allclose(body.com, host.com, atol=AGREE)
        np.testing.assert_allclose(body.inertia, host.inertia, rtol=AGREE)
        assert body.provenance[0].sha256 == mesh.sha256
        assert body.provenance[0].inertia == mode
        lowest = [b.body_points()[0, :, 2].min() for b in (body, host)]
        np.testing.assert_allclose(lowest[0], lowest[1], atol=1e-6)
    assert len(made) == (13 if mode == "exact" else 24)


def test_single_precision_is_bounded(loaded):
    """Where 64-bit types are off or slow: still five digits, of unit size."""
    surfaces = upright(loaded)
    padded = pad(surfaces, 4096, len(surfaces))
    single = jax.device_get(mass_integrals(padded, True))
    with jax.enable_x64(True):
        double = jax.device_get(mass_integrals(padded, True))
    assert (single.volume.dtype, double.volume.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single.volume, double.volume, rtol=AGREE_SINGLE)
    np.testing.assert_allclose(single.com, double.com, atol=AGREE_SINGLE)
    size = np.abs(double.tensor).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(single.tensor / size, double.tensor / size, atol=AGREE_SINGLE)


def test_winding_faults_are_those_of_the_host(loaded):
    box = shapes.from_trimesh(shapes.box(1, 1, 1))
    mixed = box.triangles.copy()
    mixed[0] = mixed[0][::-1]
    surfaces = upright(loaded)
    surfaces += [Surface(box.vertices, box.triangles), Surface(box.vertices, mixed)]
    with jax.enable_x64(True):
        faults = mass_integrals(pad(surfaces, 4096, len(surfaces)), False).fault
    expected = [winding_fault(triangles) is not None for _, triangles, *_ in surfaces]
    assert expected[-2:] == [False, True]
    np.testing.assert_array_equal(np.asarray(faults), expected)


def test_padding_does_not_matter():
    box = shapes.from_trimesh(shapes.box(1, 2, 3))
    surface = [Surface(box.vertices, box.triangles)]
    with jax.enable_x64(True):
        masses = [mass_integrals(pad(surface, n, 1), False) for n in (16, 64)]
    for small, large in zip(*masses, strict=True):
        np.testing.assert_array_equal(small, large)
    np.testing.assert_allclose(masses[0].volume, 6.0, rtol=1e-7)


def test_support_points_are_the_outermost_and_the_feet():
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(500, 3)).astype(np.float32)
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    legs = np.array([[x, y, -2.0] for x in (-0.4, 0.4) for y in (-0.3, 0.3)], np.float32)
    inside = 0.3 * ball
    vertices = np.concatenate([inside, ball, legs])
    chosen = np.asarray(support_points(jnp.asarray(vertices), 256))
    assert chosen.shape == (256,)
    assert set(range(1000, 1004)) <= set(chosen.tolist())
    assert not set(range(500)) & set(chosen.tolist())


def test_one_trace_a_bucket(loaded):
    """However many meshes pass, and whatever their sizes."""
    programs: list[Any] = [device_bodies.mass_integrals, device_bodies._bodies]
    for program in programs:
        program.clear_cache()
    made = [len(i) for part in (loaded[:5], loaded[5:], loaded)
            for i, _ in bodies_on_device(upright(part), shapes.EVAL)]  # fmt: skip
    assert sum(made) == 48
    assert [program._cache_size() for program in programs] == [2, 2]


def test_labels_of_the_committed_meshes(loaded):
    """C MuJoCo on 256 points and on the whole hull: the same side of 20 degrees."""
    index, bodies = zip(*bodies_on_device(upright(loaded), shapes.EVAL), strict=True)
    rest = referee.drop(concatenate(list(bodies)), shapes.EVAL)
    recorded = {e["mesh"].split("/")[-1]: e["tilt_mj400"] for e in shapes.manifest()}
    names = [loaded[i].source.split("/")[-1] for part in index for i in part]
    assert len(names) == 24
    wrong = [
        name
        for name, angle in zip(names, rest.rotation_deg, strict=True)
        if (angle < 20) != (recorded[name] < 20)
    ]
    assert wrong == []


def test_what_the_device_does_not_make(loaded):
    with pytest.raises(ValueError, match="voxel"):
        next(bodies_on_device(upright(loaded), Protocol(inertia="voxel")))
    large = shapes.from_trimesh(trimesh.creation.icosphere(5))
    assert list(bodies_on_device(upright([large]), shapes.EVAL)) == []


def test_files_to_bodies_in_order(tmp_path, monkeypatch):
    """As `prepare` gives them, but for the points; what the device cannot make has a hull."""
    monkeypatch.setattr("sim_mjx.prepare_device._WINDOW", 5)
    monkeypatch.setattr("sim_mjx.prepare_device._WINDOW_BYTES", 50_000)
    flat = tmp_path / "flat.obj"
    flat.write_bytes(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 2 4 3\n")
    paths = sorted((shapes.DATA / "meshes").glob("*.obj"))[:8]
    paths = [paths[0], tmp_path / "absent.obj", *paths[1:5], flat, *paths[5:]]
    protocol = Protocol(inertia="exact")
    host = list(prepare(paths, protocol, workers=0))
    device = list(prepare_on_device(paths, protocol, workers=1))
    assert len(device) == len(paths) == 10
    fell_back = 0
    for a, b in zip(host, device, strict=True):
        assert (a.index, a.path, a.sha256, a.reason) == (b.index, b.path, b.sha256, b.reason)
        if a.body is not None and b.body is not None:
            np.testing.assert_allclose(a.body.mass, b.body.mass, rtol=AGREE)
            fallback = a.body.provenance[0].fallback
            assert b.body.provenance[0].fallback == fallback
            assert (b.body.polygons is None) == (fallback is None)
            fell_back += fallback is not None
    assert [row.reason for row in device].count("") == 8
    assert 0 < fell_back < 8


def test_company_changes_no_bit(loaded):
    """Batches of another size and order: what a resumed job makes is what the first one made."""
    surfaces = upright(loaded)[:9]
    order = np.random.default_rng(0).permutation(9)

    def bodies(surfaces):
        found = {}
        for index, batch in bodies_on_device(surfaces, shapes.EVAL):
            found.update({batch.provenance[k].source: batch[k] for k in range(len(index))})
        return found

    whole, part = bodies(surfaces), bodies([surfaces[i] for i in order[:5]])
    assert 5 == len(part) < len(whole) == 9
    for source, body in part.items():
        for a, b in zip(jax.tree.leaves(body), jax.tree.leaves(whole[source]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_job_with_bodies_from_the_device(tmp_path):
    """Shards and a resumed job make the same rows; a job with hulls does not mix with it."""
    files = jobs.crowd(tmp_path / "meshes", 6)
    task = dataclasses.replace(jobs.TASK, preparation="device")
    whole, out = tmp_path / "whole.parquet", tmp_path / "labels.parquet"
    assert jobs.label(files, whole, task, block=len(files))
    assert not jobs.label(files, out, task, block=4, shard=(1, 3))
    with pytest.raises(PlanError, match="another preparation: device then, host now"):
        jobs.label(files, out, block=4)
    assert jobs.label(files, out, task, block=4)
    table = jobs.table(out)
    assert table.equals(jobs.table(whole))
    assert set(table["points"].to_pylist()) == {None, device_bodies.MAX_POINTS}
    assert jobs.label(files, tmp_path / "hulls.parquet")
    hulls = jobs.table(tmp_path / "hulls.parquet")
    for name in ("path", "sha256", "reason", "stable", "inertia"):
        assert table[name].equals(hulls[name]), name
    with pytest.raises(ProtocolError, match="'voxel' is not made on the device"):
        dataclasses.replace(task, protocol=Protocol(inertia="voxel"))
