"""The static margin and the angles of a label, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sim_mjx import Rest, bodies_from_occupancy, concatenate, static_margin_deg
from sim_mjx.margin import distance_inside
from sim_mjx.rest import rotation_deg, tilt_deg
from tests.sim import shapes


def test_margin_of_boxes():
    # A unit cube tips about an edge once its centre, 0.5 high and 0.5 inside, is over it: 45 deg.
    # With the top moved sideways by s the centre moves by s/2.
    bodies = concatenate([shapes.leaning(s) for s in (0.0, 0.5, 1.2)])
    expected = [45.0, np.degrees(np.arctan2(0.25, 0.5)), 0.0]
    np.testing.assert_allclose(static_margin_deg(bodies), expected, atol=1e-3)


def test_margin_from_occupancy():
    half = (4 / 32, 6 / 32, 10 / 32)
    bodies, _ = bodies_from_occupancy(shapes.box_logits(32, half)[None])
    # The nearest edge runs along y. Crossings of the underside lie at voxel centres, so it is 3.5
    # voxels away (half a voxel inside the box), and 10 down.
    expected = np.degrees(np.arctan2(3.5, 10))
    np.testing.assert_allclose(static_margin_deg(bodies)[0], expected, atol=1e-3)


def test_distance_inside_a_triangle():
    feet = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    # The incircle of a 3-4-5 triangle has radius 1 around (1, 1).
    np.testing.assert_allclose(distance_inside(feet, np.array([1.0, 1.0])), 1.0)
    np.testing.assert_allclose(distance_inside(feet, np.array([-2.0, 1.0])), -2.0)
    assert distance_inside(feet[:2], np.array([2.0, 0.0])) == 0.0
    line = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert distance_inside(line, np.array([1.0, 1.0])) == 0.0


def quaternion(axis, degrees):
    half = np.radians(degrees) / 2
    axis = np.array(axis, float) / np.linalg.norm(axis)
    return np.array([np.cos(half), *(np.sin(half) * axis)])


@pytest.mark.parametrize(
    ("axis", "degrees", "tilt", "rotation"),
    [
        ((1, 0, 0), 30, 30, 30),
        ((0, 1, 0), 179, 179, 179),
        ((0, 0, 1), 90, 0, 90),  # yaw turns, but does not tilt
        ((1, 0, 0), 270, 90, 270),  # the long way round, as DSO counts
        ((1, 0, 0), 0.001, 0.001, 0.001),  # below the resolution of acos in float32
        ((1, 0, 1), 180, 90, 180),
    ],
)
def test_angles(axis, degrees, tilt, rotation):
    q = quaternion(axis, degrees)[None]
    np.testing.assert_allclose(tilt_deg(q), [tilt], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rotation_deg(q), [rotation], rtol=1e-6)
    single = q.astype(np.float32)
    np.testing.assert_allclose(rotation_deg(single), [rotation], rtol=1e-4)


def make_rest(quaternions, quiet, reasons):
    count = len(quaternions)
    return Rest.from_states(
        np.zeros((count, 3)), np.array(quaternions), np.ones(count, int), np.array(quiet), reasons
    )


def test_status_and_stable():
    upright, nan = quaternion((1, 0, 0), 5), np.full(4, np.nan)
    yawed, fallen = quaternion((0, 0, 1), 40), quaternion((1, 0, 0), 80)
    rest = make_rest(
        [upright, upright, nan, fallen, yawed, upright],
        [True, False, True, True, True, True],
        [None, None, None, None, None, "empty"],
    )
    assert rest.status.tolist() == ["rest", "moving", "invalid", "rest", "rest", "invalid"]
    assert rest.reason.tolist() == [None, None, "not_finite", None, None, "empty"]
    assert np.isnan(rest.tilt_deg[[2, 5]]).all()
    by_rotation = rest.stable(shapes.EVAL)
    assert by_rotation.tolist() == [True, True, False, False, False, False]
    tilt = dataclasses.replace(shapes.EVAL, measure="tilt")
    assert rest.stable(tilt).tolist() == [True, True, False, False, True, False]
    strict = dataclasses.replace(tilt, threshold_deg=5.0 - 1e-6)
    assert not rest.stable(strict)[0]
