"""Flat cuts, rest poses and the best of N."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from dso_jax.evaluation import geometry
from dso_jax.evaluation.baselines import best_of, best_pose, rest_poses, unit_upright
from dso_jax.evaluation.cut import CUTS, flat_cut
from sim_mjx import static_margin_deg
from sim_mjx.bodies import BodyError
from sim_mjx.meshes import Mesh, body_from_triangles, load_mesh
from tests.evaluation.variants import PATHS
from tests.sim.shapes import EVAL, box, from_trimesh, mesh_path

# The margin of a body is computed from float32 vertices, and its contact skin is as deep as ours.
MARGIN = 1e-3


def margin(mesh: Mesh) -> float:
    return float(static_margin_deg(body_from_triangles(mesh, EVAL))[0])


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)


def pipe() -> trimesh.Trimesh:
    return trimesh.creation.annulus(r_min=0.2, r_max=0.3, height=1.0, sections=32)


def missing_side() -> Mesh:
    """A cube that lacks one triangle of a side."""
    cube = from_trimesh(box(1, 1, 1))
    side = np.ptp(cube.vertices[cube.triangles][:, :, 0], axis=1) == 0
    return Mesh(cube.vertices, np.delete(cube.triangles, np.flatnonzero(side)[0], axis=0))


def nested(*sides: float) -> trimesh.Trimesh:
    """Cubes within cubes, by turns solid and hollow."""
    cubes = [box(side, side, side) for side in sides]
    for hollow in cubes[1::2]:
        hollow.invert()
    joined = trimesh.util.concatenate(cubes)
    assert isinstance(joined, trimesh.Trimesh)
    return joined


@pytest.mark.parametrize(
    ("solid", "height", "volume"),
    [
        (box(1, 1, 1), 0.2, 0.8),
        (trimesh.creation.icosphere(5, 0.5), 0.1, np.pi / 6 - np.pi * 0.01 * (1.5 - 0.1) / 3),
        (pipe(), 0.25, 0.75 * pipe().volume),
        (nested(1.0, 0.5), 0.5, (1 - 0.125) / 2),
        (nested(1.0, 0.6, 0.2), 0.5, (1 - 0.216 + 0.008) / 2),
    ],
    ids=["cube", "sphere", "pipe", "hollow", "nested"],
)
def test_cut_solids_are_closed_and_of_the_right_volume(solid, height, volume):
    cut = as_trimesh(flat_cut(from_trimesh(solid), height))
    assert cut.is_watertight and cut.is_winding_consistent
    assert cut.volume == pytest.approx(volume, rel=2e-3)
    assert cut.bounds[0, 2] == pytest.approx(height - 0.5)


def test_height_is_measured_in_the_unit_object_along_its_up_axis():
    """A lamp 60 cm tall in a y-up file; .1 is 6 cm."""
    lamp = load_mesh(mesh_path("stoneLantern"))
    cut = as_trimesh(flat_cut(lamp, 0.1))
    assert cut.is_watertight
    np.testing.assert_allclose(cut.bounds[:, 2], [-0.4, 0.5], atol=1e-9)
    assert flat_cut(lamp, 0.1).up == "z"
    sideways = as_trimesh(flat_cut(lamp, 0.1, up="z"))
    assert sideways.bounds[1, 2] < 0.4


def test_cuts_raise_the_margin_of_tall_objects_and_cost_shape():
    """Objects that touch the ground in a point or an edge stand once cut."""
    cone = from_trimesh(trimesh.creation.cone(radius=0.15, height=1.0))
    tip = Mesh(cone.vertices * [1, -1, -1], cone.triangles)
    egg = trimesh.creation.icosphere(3, 0.5)
    egg.vertices *= [0.3, 0.4, 1.0]
    rock = load_mesh(mesh_path("rock2"))
    for tall in (tip, from_trimesh(egg), rock):
        margins = [margin(tall)] + [margin(flat_cut(tall, height)) for height in CUTS]
        assert margins[0] == 0.0
        assert margins[1] > 0.5
        assert (np.diff(margins) > 0).all()
    distance = [geometry.compare(flat_cut(rock, height), rock).chamfer for height in CUTS]
    floor = geometry.compare(rock, rock).chamfer
    assert floor < distance[0] < distance[3]
    assert distance[3] > 1.3 * floor


@pytest.mark.parametrize(
    ("mesh", "height", "reason"),
    [
        (from_trimesh(box(1, 1, 0.1)), 0.2, "nothing_left"),
        (from_trimesh(box(1, 1, 0.2)), 0.2, "nothing_left"),
        (Mesh(np.eye(3), np.array([[0, 1, 2]])), 0.2, "open_section"),
        (missing_side(), 0.3, "open_section"),
        (Mesh(np.ones((3, 3)), np.array([[0, 1, 2]])), 0.2, "flat"),
    ],
)
def test_what_cannot_be_cut_has_a_reason(mesh, height, reason):
    with pytest.raises(BodyError) as error:
        flat_cut(mesh, height)
    assert error.value.reason == reason


def test_holes_away_from_the_section_do_not_matter():
    cube = box(1, 1, 1)
    topless = cube.faces[cube.triangles[:, :, 2].min(axis=1) < 0.49]
    cut = as_trimesh(flat_cut(Mesh(np.asarray(cube.vertices), np.asarray(topless)), 0.3))
    assert cut.area == pytest.approx(1 + 4 * 0.7)


def test_a_box_has_six_poses_and_lies_down_to_be_safe():
    tower = from_trimesh(box(0.2, 0.3, 1.0))
    poses = rest_poses(tower)
    angles = [np.degrees(np.arctan2(a, b)) for a, b in [(0.3, 0.2), (0.2, 0.3), (0.2, 1.0)]]
    expected = np.repeat(angles, 2)
    np.testing.assert_allclose([pose.margin_deg for pose in poses], expected, atol=MARGIN)
    np.testing.assert_allclose([p.turn_deg for p in poses], [90, 90, 90, 90, 0, 180], atol=1e-6)
    lying, pose = best_pose(tower)
    np.testing.assert_allclose(np.ptp(lying.vertices, axis=0), [1.0, 0.3, 0.2], atol=1e-9)
    assert margin(lying) == pytest.approx(pose.margin_deg, abs=MARGIN)
    _, upright = best_pose(tower, "nearest")
    assert upright.turn_deg == 0.0
    _, safe = best_pose(tower, "nearest", least_deg=20.0)
    assert safe.turn_deg == pytest.approx(90.0)
    with pytest.raises(BodyError, match="no pose has a margin of 60"):
        best_pose(tower, "nearest", least_deg=60.0)


def test_the_nearest_pose_takes_back_a_tilt():
    chair = unit_upright(load_mesh(mesh_path("stool2")))
    tilt = trimesh.transformations.rotation_matrix(np.radians(4), [1, 2, 0])[:3, :3]
    tilted = Mesh(chair.vertices @ tilt.T, chair.triangles)
    back, pose = best_pose(tilted, "nearest", least_deg=1.0)
    assert pose.turn_deg == pytest.approx(4.0, abs=0.2)
    assert margin(tilted) == 0.0
    assert margin(back) == pytest.approx(margin(chair), abs=0.5)


def test_poses_of_real_objects():
    """Every mesh has one; the body in that pose has the margin that was promised, and the most."""
    for path in PATHS:
        mesh = load_mesh(path)
        turned, pose = best_pose(mesh)
        assert margin(turned) == pytest.approx(pose.margin_deg, abs=0.01), path.stem
        assert pose.margin_deg > 5.0, path.stem
        assert pose.margin_deg >= margin(mesh) - 0.01, path.stem
        again, _ = best_pose(mesh)
        np.testing.assert_array_equal(again.vertices, turned.vertices)


def test_poses_are_those_of_trimesh():
    """Its quasi-static analysis, without noise, finds the same faces."""
    for mesh in (box(1, 2, 3), trimesh.creation.cone(radius=0.3, height=1.0, sections=7)):
        turns, share = trimesh.poses.compute_stable_poses(mesh, sigma=0.0)
        downs = -turns[share > 1e-9, 2, :3]
        ours = np.array([pose.rotation.T @ [0, 0, -1] for pose in rest_poses(from_trimesh(mesh))])
        assert len(ours) == len(downs)
        assert ((ours @ downs.T).max(axis=1) > 1 - 1e-6).all()


def test_best_of():
    groups = np.array(["b", "a", "b", "a", "b", "c"])
    scores = np.array([1.0, np.nan, 3.0, -2.0, 3.0, np.nan])
    assert best_of(scores, groups).tolist() == [2, 3, 5]
    assert best_of(scores, groups, 1).tolist() == [0, 1, 5]
    assert best_of(scores > 0, groups, 2).tolist() == [0, 1, 5]
    with pytest.raises(ValueError, match="one length"):
        best_of(scores[:2], groups)
    with pytest.raises(ValueError, match="best of 0"):
        best_of(scores, groups, 0)


def test_more_candidates_never_score_less():
    """Best of 1, 2, 4 among towers of random width, by margin."""
    widths = np.random.default_rng(0).uniform(0.1, 0.5, 12)
    scores = np.array([margin(from_trimesh(box(width, 1, 1))) for width in widths])
    groups = np.repeat(np.arange(3), 4)
    best = [scores[best_of(scores, groups, count)].mean() for count in (1, 2, 4)]
    assert best[0] <= best[1] <= best[2]
    assert best[2] == scores.reshape(3, 4).max(axis=1).mean() > best[0]
