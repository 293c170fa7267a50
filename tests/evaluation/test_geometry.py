"""Distances in closed form, the noise floor, seeds and normalisation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh
from scipy.integrate import quad
from scipy.spatial import cKDTree

from dso_jax.evaluation import geometry
from dso_jax.evaluation.icp import Criteria
from sim_mjx.bodies import BodyError
from sim_mjx.meshes import Mesh, load_mesh
from tests.evaluation.variants import PATHS
from tests.sim.shapes import box, from_trimesh

# A mean of 10,000 distances to random points, and the bend of a sphere between them.
FLOOR_ERROR = 0.02
# Closed forms, once the points are dense: the floor adds in squares to distances that are not 0.
CLOSED_FORM = 0.01
STILL = dataclasses.replace(geometry.PAPER, icp=Criteria(iterations=0))


def sampled(points: np.ndarray) -> geometry.Sampled:
    return geometry.Sampled(cKDTree(points), 1.0, 0.0)


def sphere_points(radius: float, count: int, seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return radius * points / np.linalg.norm(points, axis=1, keepdims=True)


def cube_points(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.random((count, 3)) - 0.5
    points[np.arange(count), rng.integers(3, size=count)] = rng.choice([-0.5, 0.5], count)
    return points


@pytest.mark.parametrize(("radius", "offset"), [(0.4, 0.0), (0.4, 0.05), (0.45, 0.02)])
def test_two_spheres(radius, offset):
    """A point at height u of one sphere lies |distance from the other's centre - radius| away."""

    def mean(own: float, other: float) -> float:
        away = lambda u: np.sqrt(own**2 + offset**2 + 2 * own * offset * u)  # noqa: E731
        return quad(lambda u: abs(away(u) - other) / 2, -1, 1)[0]

    a = sphere_points(0.5, 40_000, 0) + np.array([offset, 0, 0])
    found = geometry.measure(sampled(a), sampled(sphere_points(radius, 40_000, 1)), STILL)
    expected = (mean(0.5, radius) + mean(radius, 0.5)) / 2
    assert found.chamfer == pytest.approx(expected, rel=CLOSED_FORM)


@pytest.mark.parametrize("shift", [0.1, 0.2])
def test_translated_cubes(shift):
    """Two faces see the other cube's end face or sides, four lie in its planes but for a strip."""
    inside = (1 - (1 - 2 * shift) ** 3) / 6  # mean of min(shift, distance to the face's border)
    strip = 4 * shift * shift / 2
    expected = (inside + shift + strip) / 6
    count = 60_000
    a, b = cube_points(count, 0) + np.array([shift, 0, 0]), cube_points(count, 1)
    found = geometry.measure(sampled(a), sampled(b), STILL)
    common = 4 / 6 * (1 - shift) * geometry.noise_floor(6.0, count)
    assert found.chamfer == pytest.approx(expected + common, rel=CLOSED_FORM)


def test_f_score_counts_what_is_within_the_threshold():
    ball = sampled(sphere_points(0.5, 20_000, 0))
    for radius, score in ((0.46, 1.0), (0.44, 0.0)):
        found = geometry.measure(sampled(sphere_points(radius, 20_000, 1)), ball, STILL)
        assert found.f_score == pytest.approx(score, abs=1e-3)
    half = ball.points[ball.points[:, 2] > 0]
    found = geometry.measure(sampled(half), ball, STILL)
    # Within .05 of a half sphere lies its own half and a band .05 high of the other.
    assert found.precision == 1.0
    assert found.recall == pytest.approx(0.5 + 0.05, abs=0.01)
    assert found.f_score == pytest.approx(2 * found.recall / (1 + found.recall))


@pytest.mark.parametrize(
    ("mesh", "area"),
    [
        (box(1, 1, 1), 6.0),
        (trimesh.creation.icosphere(4, 0.5), np.pi),
        (box(3, 1, 3e-4), 2 * (1 / 3 + 4e-4 / 3)),
    ],
    ids=["cube", "sphere", "plate"],
)
def test_noise_floor(mesh, area):
    """The formula, what is measured of the truth, and the score of a perfect copy agree."""
    body = from_trimesh(mesh)
    found = geometry.compare(body, body)
    assert found.floor == pytest.approx(0.5 * np.sqrt(area / 10_000), rel=2e-3)
    thin = 1 / np.sqrt(2) if area < 1 else 1.0  # both sides of a plate are one sheet
    assert found.self_chamfer == pytest.approx(thin * found.floor, rel=2 * FLOOR_ERROR)
    assert found.chamfer == pytest.approx(found.self_chamfer, rel=2 * FLOOR_ERROR)


def test_fine_has_a_lower_floor():
    mesh = load_mesh(PATHS[16])
    fine, paper = geometry.compare(mesh, mesh, geometry.FINE), geometry.compare(mesh, mesh)
    assert fine.chamfer == pytest.approx(paper.chamfer / np.sqrt(10), rel=2 * FLOOR_ERROR)
    assert fine.f_score > 0.999  # its threshold is not in the noise


def test_place_scale_and_up_axis_do_not_count():
    """The axes of a STL file and of a GLB file with the same object."""
    truth = load_mesh(PATHS[3])
    x, y, z = truth.vertices.T
    stl = Mesh(np.stack([x, -z, y], axis=1) * 25.4 + [5, -3, 100], truth.triangles, "z")
    assert geometry.compare(stl, truth).chamfer < 1.05 * geometry.compare(truth, truth).chamfer
    lying = dataclasses.replace(geometry.PAPER, generated_up="y")
    assert geometry.compare(stl, truth, lying).chamfer > 0.02


def test_icp_undoes_a_small_turn():
    truth = load_mesh(PATHS[3])
    angle = np.radians(1.5)
    turn = trimesh.transformations.rotation_matrix(angle, [1, 2, 3])[:3, :3]
    turned = dataclasses.replace(truth, vertices=truth.vertices @ turn.T)
    found, still = (geometry.compare(turned, truth, c) for c in (geometry.PAPER, STILL))
    assert found.icp_turn_deg == pytest.approx(1.5, abs=0.1)
    assert found.chamfer < 1.05 * found.self_chamfer < 1.2 * still.chamfer


def test_objects_without_any_partner_stay_where_they_are():
    far = sampled(sphere_points(0.1, 500, 0))
    found = geometry.measure(far, sampled(sphere_points(0.5, 500, 1)), geometry.PAPER)
    assert (found.icp_fitness, found.icp_turn_deg, found.f_score) == (0.0, 0.0, 0.0)
    assert found.chamfer == pytest.approx(0.4, rel=0.01)


def test_samples_depend_on_seed_and_contents():
    a, b = load_mesh(PATHS[3]), load_mesh(PATHS[10])
    first = geometry.compare(a, b)
    assert geometry.compare(a, b) == first
    other = geometry.compare(a, b, dataclasses.replace(geometry.PAPER, seed=1))
    assert other.chamfer != first.chamfer
    assert other.chamfer == pytest.approx(first.chamfer, rel=0.05)
    truth = geometry.sample_truth(a, geometry.PAPER).points
    assert not np.array_equal(truth, geometry.sample_generated(a, geometry.PAPER).points)


@pytest.mark.parametrize(
    ("vertices", "reason"),
    [(np.ones((3, 3)), "flat"), (np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2.0]]), "no_area")],
)
def test_meshes_without_a_surface(vertices, reason):
    with pytest.raises(BodyError) as error:
        geometry.compare(Mesh(vertices, np.array([[0, 1, 2]])), load_mesh(PATHS[0]))
    assert error.value.reason == reason


@pytest.mark.parametrize("bad", [{"points": 0}, {"threshold": float("nan")}])
def test_configuration_is_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        geometry.GeometryConfig(**bad)
