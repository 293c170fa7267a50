"""Chamfer distance and F-score against spec section 5 written again with scipy alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from benchmarks.guard_changes import HONEST
from dso_jax.evaluation import geometry, icp
from sim_mjx.meshes import Mesh, load_mesh
from tests.evaluation.variants import PATHS, honest_pairs

# On the same points: rounding, through up to 50 updates. The issue asks for 2 % and 0.5 points.
ROUNDING = 1e-9
# On other points of the same surfaces, 10,000 draws leave a score of .9 a deviation of .4 points,
# and ICP settles elsewhere on one pair in thirty: nine in ten pairs, and the mean over many.
CHAMFER, F_SCORE = 0.02, 0.005
MOST, CHAMFER_MEAN, F_SCORE_MEAN = 0.9, 0.003, 0.002


def plain_samples(mesh: Mesh, rng: np.random.Generator, count: int = 10_000) -> np.ndarray:
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    vertices = (mesh.vertices - (low + high) / 2) / (high - low).max()
    a, b, c = (vertices[mesh.triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = rng.choice(len(area), count, p=area / area.sum())
    root, along = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    return (1 - root) * a[chosen] + root * (1 - along) * b[chosen] + root * along * c[chosen]


def plain_icp(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Moved source points: every neighbour searched for, fits by scipy."""
    tree, before = cKDTree(target), None
    for update in range(51):
        distance, partner = tree.query(source)
        near = distance < 0.02
        rmse = np.sqrt((distance[near] ** 2).mean()) if near.any() else 0.0
        state = np.array([near.mean(), rmse])
        if before is not None and (np.abs(state - before) < 1e-6).all():
            break
        before = state
        if update == 50 or not near.any():
            break
        middle, goal = source[near].mean(axis=0), target[partner[near]].mean(axis=0)
        fit, _ = Rotation.align_vectors(target[partner[near]] - goal, source[near] - middle)
        source = fit.apply(source - middle) + goal
    return source


def plain_scores(generated: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    moved = plain_icp(generated, truth)
    there, back = cKDTree(truth).query(moved)[0], cKDTree(moved).query(truth)[0]
    precision, recall = (there < 0.05).mean(), (back < 0.05).mean()
    both = max(precision + recall, 1e-300)
    return (there.mean() + back.mean()) / 2, 2 * precision * recall / both


def differences(generated: Mesh, truth: Mesh) -> np.ndarray:
    """Ours less the plain ones: relative distance and score, on the same and on other points."""
    config = geometry.PAPER
    a, b = geometry.sample_generated(generated, config), geometry.sample_truth(truth, config)
    ours = geometry.measure(a, b, config)
    rng = np.random.default_rng(1)
    rows = []
    for points in (
        (a.points, b.points),
        (plain_samples(generated, rng), plain_samples(truth, rng)),
    ):
        chamfer, f_score = plain_scores(*points)
        rows.append((ours.chamfer / chamfer - 1, ours.f_score - f_score))
    return np.array(rows)


def check(count: int) -> np.ndarray:
    """Differences on other points than ours, (count, 2); on the same points there are none."""
    found = np.array([differences(*pair[1:]) for pair in honest_pairs(count)])
    same, other = found[:, 0], found[:, 1]
    assert np.abs(same).max() < ROUNDING
    print(f"{count} pairs: same points {np.abs(same).max(axis=0)}", end="; ")
    print(f"other points {np.abs(other).max(axis=0)}, mean {other.mean(axis=0)}", end="; ")
    print(f"within {(np.abs(other) < (CHAMFER, F_SCORE)).mean(axis=0)}")
    return other


def test_scores_agree():
    assert (np.abs(check(4)) < (CHAMFER, F_SCORE)).all()


@pytest.mark.slow
def test_scores_of_a_hundred_pairs_agree():
    other = check(100)
    assert ((np.abs(other) < (CHAMFER, F_SCORE)).mean(axis=0) > MOST).all()
    assert (np.abs(other.mean(axis=0)) < (CHAMFER_MEAN, F_SCORE_MEAN)).all()


@pytest.mark.parametrize("others", [(3, 10), (10, 3), (0, 20)])
def test_icp_is_the_plain_one(others):
    """Also between different objects, where it turns far: on the same points, the same motion."""
    rng = np.random.default_rng(0)
    a, b = (plain_samples(load_mesh(PATHS[k]), rng, 3000) for k in others)
    expected = plain_icp(a, b)
    found = icp.align(a, cKDTree(b))
    moved = a @ found.rotation.T + found.translation
    np.testing.assert_allclose(moved, expected, atol=ROUNDING)
    np.testing.assert_allclose(found.nearest, cKDTree(b).query(expected)[0], atol=ROUNDING)


def test_variants_are_changes():
    """The parity above compares surfaces that differ, not copies."""
    mesh = load_mesh(PATHS[3])
    floor = geometry.compare(mesh, mesh).chamfer
    for name, change in HONEST.items():
        assert geometry.compare(change(mesh), mesh).chamfer > 1.02 * floor, name
