"""Guards see planted cheats and are silent on honest changes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import trimesh

from benchmarks.guard_changes import joined, plated, stretched
from dso_jax.evaluation.baselines import unit_upright
from dso_jax.evaluation.guards import NAMES, Finding, check, verdict
from dso_jax.evaluation.shape import RESOLUTION, Shape, shape
from sim_mjx.bodies import BodyError
from sim_mjx.meshes import Mesh, load_mesh
from tests.evaluation.variants import honest_pairs
from tests.sim.shapes import box, from_trimesh, mesh_path

# Objects on feet, poles and points, such as plates are grown under.
TALL = ("chair2", "osakaChair", "horse2", "stool2", "outdoorLamp", "towel2", "stoneLantern")


@functools.cache
def reference(name: str) -> Shape:
    return shape(load_mesh(mesh_path(name)))


def fired(sample: Shape | None, name: str) -> set[str]:
    return {guard for guard, found in check(sample, reference(name)).items() if found.fires}


@pytest.mark.parametrize("name", TALL)
@pytest.mark.parametrize(("thick", "wide"), [(0.02, 1.0), (0.06, 1.0), (0.03, 1.5)])
def test_a_plate_under_an_object_is_seen(name, thick, wide):
    found = fired(shape(plated(load_mesh(mesh_path(name)), thick, wide)), name)
    assert {"base_plate", "footprint"} <= found


@pytest.mark.parametrize("name", ["crate", "ammoBox", "bread"])
def test_a_plate_that_is_wider_than_a_box_is_seen(name):
    """Its foot covers all of its rectangle before and after: only the drop above it tells."""
    found = fired(shape(plated(load_mesh(mesh_path(name)), 0.04, 1.5)), name)
    assert "base_plate" in found


@pytest.mark.parametrize("name", [*TALL, "crate", "rock1", "rangeHood"])
@pytest.mark.parametrize("factor", [0.65, 1.6])
def test_flattened_and_stretched_objects_are_seen(name, factor):
    assert "height" in fired(shape(stretched(load_mesh(mesh_path(name)), factor)), name)


def test_a_bloated_and_a_hollow_object_are_seen():
    hull = load_mesh(mesh_path("chair2"))
    solid = trimesh.Trimesh(hull.vertices, hull.triangles).convex_hull
    filled = Mesh(np.asarray(solid.vertices), np.asarray(solid.faces), hull.up)
    assert "volume" in fired(shape(filled), "chair2")
    crate = unit_upright(load_mesh(mesh_path("crate")))
    legs = Mesh(crate.vertices * [0.5, 0.5, 1.0], crate.triangles)
    assert "volume" in fired(shape(legs), "crate")


def test_parts_apart_and_nothing_at_all_are_seen():
    lamp = unit_upright(load_mesh(mesh_path("stoneLantern")))
    ball = trimesh.creation.icosphere(2, 0.15)
    ball.apply_translation([0.6, 0, 0.2])
    assert "components" in fired(shape(joined(lamp, ball)), "stoneLantern")
    assert fired(None, "stoneLantern") == {"empty"}
    for nothing in (np.zeros((3, 3)), np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2.0]])):
        with pytest.raises(BodyError):
            shape(Mesh(nothing, np.array([[0, 1, 2]])))


def quiet(count: int) -> None:
    findings, loud = [], {}
    for name, changed, _ in honest_pairs(count):
        findings.append(check(shape(changed), reference(name.split("/")[0])))
        if any(found.fires for found in findings[-1].values()):
            loud[name] = findings[-1]
    assert not loud
    assert not verdict(findings).suspects


def test_honest_changes_are_not_suspect():
    quiet(8)


@pytest.mark.slow
def test_a_hundred_honest_changes_are_not_suspect():
    quiet(120)


def test_measures_of_a_table():
    """A top on four legs: what the numbers are, within a voxel."""
    parts = [box(1.0, 0.6, 0.1)]
    parts[0].apply_translation([0, 0, 0.75])
    for x in (-0.45, 0.45):
        for y in (-0.25, 0.25):
            leg = box(0.1, 0.1, 0.7)
            leg.apply_translation([x, y, 0.35])
            parts.append(leg)
    table = trimesh.util.concatenate(parts)
    assert isinstance(table, trimesh.Trimesh)
    found = shape(from_trimesh(table))
    voxel = 1 / RESOLUTION
    assert found.slenderness == pytest.approx(0.8)
    assert found.footprint == pytest.approx(4 * (0.1 + voxel) ** 2 / (0.6 + voxel), abs=0.02)
    assert found.volume == pytest.approx(0.06 + 4 * 0.007, abs=6 * 0.15 * voxel + 0.01)
    assert found.components == 1
    assert abs(found.plate) < 0.01


def test_verdict_counts_shares():
    fine = dict.fromkeys(NAMES, Finding(0.0, False))
    bad = {**fine, "base_plate": Finding(0.5, True)}
    assert str(verdict([fine] * 40)) == "guards: nothing found on 40 pairs"
    judged = verdict([fine] * 9 + [bad])
    assert judged.suspects == ("base_plate",)
    assert "base_plate on 10.0% of 10 pairs" in str(judged)
    assert not verdict([fine] * 19 + [bad]).suspects
    with pytest.raises(ValueError, match="at least one pair"):
        verdict([])
