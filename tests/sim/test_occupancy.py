"""Bodies from occupancy: mass against closed forms, feet against the full point set."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from sim_mjx import bodies_from_occupancy, drop, occupancy, referee, rotations
from sim_mjx.directions import support_directions
from tests.sim import shapes

# A voxelised solid misjudges its surface by at most half a voxel.
RESOLUTION = 32
VOXEL = 1 / RESOLUTION
# Of 48 rough objects; over 400 the two contact rules differ on one label.
RULES_DIFFER = 1


def tensor(bodies, i=0):
    axes = rotations.to_matrix(bodies.inertia_quat)[i]
    return axes @ np.diag(bodies.inertia[i]) @ axes.T


def cube(voxels, centre=0.0):
    half = voxels * VOXEL
    return shapes.box_logits(RESOLUTION, (half, half, half), (centre, centre, centre))


def test_box_in_closed_form():
    """Faces on voxel boundaries: exact."""
    half, centre = (4 * VOXEL, 6 * VOXEL, 10 * VOXEL), (2 * VOXEL, 0.0, -3 * VOXEL)
    bodies, reasons = bodies_from_occupancy(shapes.box_logits(RESOLUTION, half, centre)[None])
    assert reasons == [None]
    sides = 2 * np.array(half)
    mass = 1000 * sides.prod()
    np.testing.assert_allclose(bodies.mass, [mass], rtol=1e-6)
    np.testing.assert_allclose(bodies.com[0], centre, atol=1e-9)
    square = sides**2
    expected = mass / 12 * np.diag(square.sum() - square)
    np.testing.assert_allclose(tensor(bodies), expected, atol=1e-9 * mass)
    points = bodies.body_points()[0]
    np.testing.assert_allclose(points.min(axis=0), np.array(centre) - half, atol=1e-6)
    np.testing.assert_allclose(points.max(axis=0), np.array(centre) + half, atol=1e-6)
    # All corners of the foot, to within the voxels of its edge.
    for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        corner = np.array(centre) + np.array(half) * [sx, sy, -1]
        assert np.linalg.norm(points - corner, axis=1).min() < VOXEL


def test_mass_follows_the_surface_within_a_voxel():
    """A box that ends between voxel boundaries."""
    half, centre = (4.3 * VOXEL, 6.6 * VOXEL, 10.2 * VOXEL), (0.4 * VOXEL, 0.0, -0.3 * VOXEL)
    bodies, _ = bodies_from_occupancy(shapes.box_logits(RESOLUTION, half, centre)[None])
    np.testing.assert_allclose(bodies.mass, [8000 * np.prod(half)], rtol=0.02)
    np.testing.assert_allclose(bodies.com[0], centre, atol=0.05 * VOXEL)


def test_sphere_in_closed_form():
    x, y, z = shapes.grid(RESOLUTION)
    radius = 0.4
    logits = (radius - np.sqrt(x**2 + y**2 + z**2)).astype(np.float32)
    bodies, _ = bodies_from_occupancy(jnp.asarray(logits)[None, None])
    mass = 1000 * 4 / 3 * np.pi * radius**3
    np.testing.assert_allclose(bodies.mass, [mass], rtol=0.002)
    np.testing.assert_allclose(bodies.com[0], 0, atol=1e-6)
    np.testing.assert_allclose(
        tensor(bodies), 0.4 * mass * radius**2 * np.eye(3), rtol=0.01, atol=1e-3
    )
    # Linear interpolation puts points on the sphere, not on voxel corners.
    np.testing.assert_allclose(
        np.linalg.norm(bodies.body_points()[0], axis=1), radius, atol=0.1 * VOXEL
    )


def test_interior_is_filled_and_parts_are_counted():
    solid = cube(6)
    shell = np.minimum(solid, -cube(4))
    both = np.maximum(shell, cube(2, 0.4))
    bodies, _ = bodies_from_occupancy(np.stack([solid, shell, both]))
    assert (shell > 0).sum() < (solid > 0).sum()
    np.testing.assert_allclose(bodies.mass[1], bodies.mass[0])
    np.testing.assert_allclose(bodies.inertia[1], bodies.inertia[0])
    assert [entry.components for entry in bodies.provenance] == [1, 1, 2]


def test_grid_border_is_a_surface():
    """An object that fills the grid ends at the grid's faces."""
    bodies, reasons = bodies_from_occupancy(np.ones((1, 16, 16, 16), np.float32))
    assert reasons == [None]
    np.testing.assert_allclose(bodies.mass, [1000.0])
    np.testing.assert_allclose(np.abs(bodies.body_points()).max(axis=(0, 1)), 0.5, atol=1e-6)


def test_unusable_objects_have_reasons_and_never_a_label():
    good = shapes.box_logits(16, (0.2, 0.2, 0.3))
    nan = good.copy()
    nan[3, 3, 3] = np.nan
    thin = np.full_like(good, -1e6)
    thin[8, :, :] = 1e-6
    bodies, reasons = bodies_from_occupancy(np.stack([good, -np.abs(good) - 1, nan, thin]))
    assert reasons == [None, "empty", "nan_logits", "flat"]
    rest = drop(bodies, shapes.FAST, reasons=reasons)
    assert rest.status.tolist() == ["rest", "invalid", "invalid", "invalid"]
    assert rest.reason.tolist() == reasons
    assert rest.stable(shapes.FAST).tolist() == [True, False, False, False]


@pytest.mark.parametrize("shape", [(16, 16, 16), (1, 2, 16, 16, 16), (1, 16, 16, 8), (0, 8, 8, 8)])
def test_shapes_are_checked(shape):
    with pytest.raises(ValueError, match="occupancy logits"):
        bodies_from_occupancy(np.zeros(shape, np.float32))


def full_points(bodies, logits):
    """The same bodies with every surface crossing as a support point."""
    solids = [occupancy.fill_interior(volume > 0) for volume in logits]
    every = [occupancy.surface_candidates(v, s) for v, s in zip(logits, solids, strict=True)]
    widest = max(map(len, every))
    padded = np.stack([np.pad(p, ((0, widest - len(p)), (0, 0)), "edge") for p in every])
    axes = rotations.to_matrix(bodies.inertia_quat)
    local = np.einsum("bki,bij->bkj", padded - bodies.com[:, None], axes)
    return dataclasses.replace(bodies, points=local.astype(np.float32))


def test_reduced_points_keep_the_label():
    """256 points in MJX with the skin rule; all points in C MuJoCo with its own rule."""
    logits = shapes.toy_logits(48)
    bodies, reasons = bodies_from_occupancy(logits)
    assert reasons == [None] * 48
    reduced = drop(bodies, shapes.FAST).stable(shapes.FAST)
    truth = referee.drop(full_points(bodies, logits), shapes.FAST).stable(shapes.FAST)
    assert 3 <= (~truth).sum() <= 24
    assert (reduced != truth).sum() <= RULES_DIFFER
    # With the same engine and rule, the choice of points alone changes nothing.
    thinned = referee.drop(bodies, shapes.FAST).stable(shapes.FAST)
    np.testing.assert_array_equal(thinned, truth)


def test_reduced_points_come_to_rest():
    """Rough feet have many points near the ground; their contacts must not alternate for ever."""
    bodies, _ = bodies_from_occupancy(shapes.toy_logits(48))
    rest = drop(bodies, shapes.FAST)
    assert (rest.status == "rest").mean() > 0.95
    assert np.median(rest.steps) * shapes.FAST.timestep < 1.3


def test_directions_hold_down_and_cover_the_sphere():
    directions = support_directions(256)
    assert directions.shape == (256, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(directions[0], [0, 0, -1])
    rng = np.random.default_rng(0)
    probe = rng.normal(size=(1000, 3))
    probe /= np.linalg.norm(probe, axis=1, keepdims=True)
    nearest = np.degrees(np.arccos(np.clip((probe @ directions.T).max(axis=1), -1, 1)))
    assert nearest.max() < 15
    with pytest.raises(ValueError, match="max_points"):
        support_directions(40)


def test_saturation_evens_out_how_sure_a_decoder_is():
    """Confidence varies from voxel to voxel; a flat sole must stay flat all the same."""
    sure = np.random.default_rng(0).uniform(4.0, 9.0, (16, 16, 16)).astype(np.float32)
    solid = np.zeros((16, 16, 16), bool)
    solid[5:11, 5:11, 2:12] = True
    logits = np.where(solid, sure, -sure)[None]

    def sole(**options):
        bodies, _ = bodies_from_occupancy(logits, **options)
        heights = bodies.body_points()[0, :, 2]
        return heights[heights < heights.min() + 0.45 / 16]  # the sides begin half a voxel higher

    assert np.ptp(sole()) < 1e-6
    assert np.ptp(sole(saturation=np.inf)) > 0.1 / 16
