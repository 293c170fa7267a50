"""The slot pool: batches change nothing, bad states are invalid, shapes are traced once."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from sim_mjx import concatenate, drop, pool, referee, rotations, sizes
from sim_mjx.buckets import BUCKETS
from sim_mjx.meshes import Mesh, body_from_mesh, body_from_triangles
from tests.sim import shapes

# The same arithmetic in lanes of another width rounds differently in the last bits.
SAME_POSE = 1e-4
SAME_FALL = 1e-2


@pytest.fixture(scope="module")
def small():
    """Bodies of the smallest bucket: four boxes that lean more and more, and three meshes."""
    names = ("towel3", "lantern", "table")
    meshes = [body_from_mesh(shapes.mesh_path(name), shapes.EVAL) for name in names]
    return concatenate([*(shapes.leaning(s) for s in (0.0, 0.5, 1.5, 2.0)), *meshes])


@pytest.fixture(scope="module")
def dropped(small):
    return drop(small, shapes.EVAL)


def test_falls_when_the_centre_is_over_the_edge(dropped):
    # The centre of mass moves by half the shift; the base ends 0.5 from the middle.
    assert dropped.stable(shapes.EVAL)[:4].tolist() == [True, True, False, False]
    assert (dropped.status == "rest").all()
    assert dropped.tilt_deg[0] < 0.05
    assert (dropped.steps >= shapes.EVAL.minimum_time / shapes.EVAL.timestep).all()


def test_refilled_slots_equal_one_by_one(small, dropped):
    """Forty objects through sixteen slots: each ends where it ends alone."""
    kind = np.arange(40) % len(small)
    pooled = drop(small[kind], shapes.EVAL)
    stable = dropped.stable(shapes.EVAL)
    np.testing.assert_array_equal(pooled.stable(shapes.EVAL), stable[kind])
    difference = np.abs(pooled.quaternion - dropped.quaternion[kind]).max(axis=1)
    assert difference[stable[kind]].max() < SAME_POSE
    # A fall doubles rounding differences on every impact.
    assert difference.max() < SAME_FALL
    for i in range(len(small)):
        single = drop(small[i], shapes.EVAL)
        assert np.abs(single.quaternion[0] - dropped.quaternion[i]).max() < SAME_FALL


def test_the_same_call_gives_the_same_result(small):
    many = small[np.arange(70) % len(small)]
    first, second = drop(many, shapes.EVAL), drop(many, shapes.EVAL)
    np.testing.assert_array_equal(first.steps, second.steps)
    np.testing.assert_array_equal(first.quaternion, second.quaternion)


def test_padding_changes_nothing(small, dropped):
    """More padding points, at other places: the same result."""
    points = small.points.copy()
    used = np.array([entry.hull_points for entry in small.provenance])
    tables = {name: getattr(small.polygons, name).copy() for name in ("start", "count")}
    for i, count in enumerate(used):
        # Repeat the last real point instead of the first, its table entries with it.
        points[i, count:] = points[i, count - 1]
        for table in tables.values():
            table[i, count:] = table[i, count - 1]
    polygons = dataclasses.replace(small.polygons, **tables)
    other = drop(dataclasses.replace(small, points=points, polygons=polygons), shapes.EVAL)
    np.testing.assert_array_equal(other.stable(shapes.EVAL), dropped.stable(shapes.EVAL))
    difference = np.abs(other.quaternion - dropped.quaternion).max(axis=1)
    assert difference[dropped.stable(shapes.EVAL)].max() < SAME_POSE
    assert difference.max() < SAME_FALL


def test_agrees_with_the_referee(small, dropped):
    c = referee.drop(small, shapes.EVAL)
    np.testing.assert_array_equal(c.stable(shapes.EVAL), dropped.stable(shapes.EVAL))
    standing = c.stable(shapes.EVAL)
    assert np.abs(c.tilt_deg - dropped.tilt_deg)[standing].max() < 0.1


def test_early_stop_keeps_labels(small):
    """Ten seconds in C, where they are cheap; a pin balanced on its tip is the hard case."""
    pin = body_from_triangles(_pin(), shapes.EVAL)
    bodies = concatenate([small, pin])
    full = dataclasses.replace(shapes.EVAL, early_stop=False)
    short, long = referee.drop(bodies, shapes.EVAL), referee.drop(bodies, full)
    np.testing.assert_array_equal(short.stable(full), long.stable(full))
    assert not long.stable(full)[-1]
    assert short.steps[:-1].max() < long.steps.min() == full.steps


def test_a_balanced_pin_is_not_at_rest():
    pin = body_from_triangles(_pin(), shapes.EVAL)
    rest = drop(pin, shapes.EVAL)
    assert not rest.stable(shapes.EVAL)[0]


def _pin():
    """A cone on its tip, out of balance by a millionth of its height."""
    angle = 2 * np.pi * np.arange(12) / 12
    rim = np.stack([np.cos(angle), np.sin(angle), 1 + 0 * angle], axis=1)
    vertices = np.concatenate([[[1e-6, 0, 0]], rim])
    around = np.arange(12)
    side = np.stack([0 * around, 1 + (around + 1) % 12, 1 + around], axis=1)
    top = np.stack([0 * around[2:] + 1, around[1:-1] + 1, around[2:] + 1], axis=1)
    return Mesh(vertices, np.concatenate([side, top]))


def test_not_finite_is_invalid(small):
    broken = dataclasses.replace(small, mass=small.mass * np.where(np.arange(7) == 2, np.nan, 1))
    rest = drop(broken, shapes.EVAL)
    assert (rest.status[2], rest.reason[2]) == ("invalid", "not_finite")
    assert np.isnan(rest.tilt_deg[2])
    assert not rest.stable(shapes.EVAL)[2]
    others = np.arange(7) != 2
    assert (rest.status[others] == "rest").all()
    assert rest.steps[2] == shapes.EVAL.check_steps  # no time is spent on it


def test_given_reasons_are_not_simulated(small):
    seen = []
    reasons = ["empty" if i % 2 else None for i in range(len(small))]
    rest = drop(small, shapes.EVAL, reasons=reasons, progress=seen.append)
    assert rest.reason.tolist() == reasons
    assert (rest.steps[1::2] == 0).all()
    assert sum(seen) == 4
    with pytest.raises(ValueError, match="reasons"):
        drop(small, shapes.EVAL, reasons=[None])


def test_one_trace_a_bucket(monkeypatch):
    """Meshes of any size, in any order and number: a program a bucket."""
    names = ("towel3", "bread", "tatami", "rangeHood", "rock2", "stoneLantern")
    counted = chex.assert_max_traces(pool.advance, n=2)
    monkeypatch.setattr(pool, "advance", counted)
    monkeypatch.setattr(pool, "_compiled", {})
    bodies = [body_from_mesh(shapes.mesh_path(name), shapes.EVAL) for name in names]
    assert {body.points.shape[1] for body in bodies} == {64, 256}
    for count in (1, 3, 17):
        for width in (64, 256):
            group = [body for body in bodies if body.points.shape[1] == width]
            batch = concatenate(group)[np.arange(count) % len(group)]
            assert len(drop(batch, shapes.EVAL)) == count
    assert len(pool._compiled) == 2
    assert len(BUCKETS) + 1 <= 6


def test_bodies_index_like_arrays(small):
    assert len(small[1:3]) == 2
    assert small[-1].provenance == small.provenance[-1:]
    joined = concatenate([small[:2], small[2:]])
    chex.assert_trees_all_equal(jax.tree.leaves(joined), jax.tree.leaves(small))
    assert joined.provenance == small.provenance
    with pytest.raises(IndexError):
        small[len(small)]
    with pytest.raises(ValueError, match="bucket"):
        concatenate([small, body_from_mesh(shapes.mesh_path("bread"), shapes.EVAL)])
    corner = rotations.to_matrix(small.inertia_quat)[0] @ small.points[0, 0] + small.com[0]
    np.testing.assert_allclose(small.body_points()[0, 0], corner, atol=1e-6)


def test_an_error_ends_all_pools(small):
    """What the progress callback raises comes out; the other pool does not run on."""

    def fail(count):
        raise RuntimeError("display gone")

    many = small[np.arange(64) % len(small)]
    with pytest.raises(RuntimeError, match="display gone"):
        drop(many, shapes.EVAL, progress=fail)


def test_a_missing_compiler_option_is_no_error(monkeypatch):
    monkeypatch.setattr(pool, "_CPU_OPTIONS", {"stock": {"xla_cpu_no_such_option": True}})
    compiled = pool._compile(jax.jit(lambda x: x + 1).lower(1.0), "stock", "cpu")
    assert compiled(1.0) == 2.0


def test_slim_steps_end_where_stock_ones_do(small, dropped):
    slim = drop(small, shapes.EVAL, step="slim")
    np.testing.assert_array_equal(slim.status, dropped.status)
    stable = dropped.stable(shapes.EVAL)
    np.testing.assert_array_equal(slim.stable(shapes.EVAL), stable)
    difference = np.abs(slim.quaternion - dropped.quaternion).max(axis=1)
    assert difference[stable].max() < SAME_POSE
    assert difference.max() < SAME_FALL
    with pytest.raises(ValueError, match=r"'warp' is not one of stock, slim"):
        drop(small, shapes.EVAL, step="warp")  # pyright: ignore[reportArgumentType]


def test_more_bodies_than_a_packet(small, dropped, monkeypatch):
    """Packets that are smaller than the pool, and slots that take rows of two packets."""
    monkeypatch.setattr(sizes, "PACKET_ROWS", 3)
    kind = np.arange(31) % len(small)
    seen = []
    pooled = drop(small[kind], shapes.EVAL, slots=8, progress=seen.append)
    assert sum(seen) == len(kind)
    np.testing.assert_array_equal(pooled.stable(shapes.EVAL), dropped.stable(shapes.EVAL)[kind])
    difference = np.abs(pooled.quaternion - dropped.quaternion[kind]).max(axis=1)
    assert difference.max() < SAME_FALL


SHARED = """
import jax, numpy as np
from sim_mjx import concatenate, drop
from tests.sim import shapes
bodies = concatenate([shapes.leaning(s) for s in (0.0, 0.5, 1.5, 2.0)])[np.arange(10) % 4]
rest = [drop(bodies, shapes.FAST, slots=s, step="slim", devices=jax.devices()[:n])
        for n, s in ((1, 4), (4, 1))]
assert len(jax.devices()) == 4
assert rest[0].stable(shapes.FAST).tolist() == ([True, True, False, False] * 3)[:10]
np.testing.assert_array_equal(rest[0].steps, rest[1].steps)
np.testing.assert_allclose(rest[0].quaternion, rest[1].quaternion, atol=1e-4)
"""


@pytest.mark.slow
def test_devices_share_the_slots():
    """Four devices with a slot each end where one device with four slots does."""
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SHARED], env=environment, check=True, timeout=300)
