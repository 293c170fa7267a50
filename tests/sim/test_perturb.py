"""Perturbed starts: where they come from, and that they fall when the static margin says so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sim_mjx import concatenate, referee
from sim_mjx.engines import resolve
from sim_mjx.margin import static_margin, told_margin, with_margin
from sim_mjx.meshes import body_from_mesh
from sim_mjx.perturb import Perturbation, PerturbError, body_bytes, survival, turned
from sim_mjx.rest import Rest, tilt_deg
from tests.sim import shapes

KEYS = ("ab12", "ab13", "0")


def test_starts_are_as_described():
    """Uniform angle of either sign about a uniform horizontal axis."""
    theta = 0.3
    w, x, y, z = Perturbation(theta, 20_000).quaternions("ab12").T
    assert (z == 0).all()
    angle = 2 * np.arctan2(np.hypot(x, y), w)
    assert angle.max() <= theta
    # |angle| is uniform in [0, theta]: its mean is theta / 2 with a spread of theta / sqrt(12 N).
    assert abs(angle.mean() - theta / 2) < 4 * theta / np.sqrt(12 * len(angle))
    azimuth = np.arctan2(y, x)
    assert abs(np.exp(1j * azimuth).mean()) < 4 / np.sqrt(len(angle))
    quarters, _ = np.histogram(azimuth, bins=8, range=(-np.pi, np.pi))
    assert quarters.min() > 0.9 * len(angle) / 8


def test_a_start_depends_on_the_object_and_its_number_alone():
    first = Perturbation(0.1, 5)
    assert np.array_equal(first.quaternions("ab12"), Perturbation(0.1, 9).quaternions("ab12")[:5])
    assert not np.array_equal(first.quaternions("ab12"), first.quaternions("ab13"))
    other = dataclasses.replace(first, seed=1)
    assert not np.array_equal(first.quaternions("ab12"), other.quaternions("ab12"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"theta": 0.0}, "theta"),
        ({"theta": 4.0}, "theta"),
        ({"theta": float("nan")}, "theta"),
        ({"starts": 0}, "starts"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(PerturbError, match=message):
        Perturbation(**{"theta": 0.1, **fields})


def test_turned_bodies_are_turned():
    bodies = concatenate([shapes.leaning(0.0), shapes.leaning(0.7)])
    quaternions = Perturbation(0.5, 2).quaternions("1")
    after = turned(bodies, quaternions)
    w, xyz = quaternions[:, None, :1], quaternions[:, None, 1:]
    points = bodies.body_points()
    twice = 2 * np.cross(np.broadcast_to(xyz, points.shape), points)
    expected = points + w * twice + np.cross(np.broadcast_to(xyz, points.shape), twice)
    np.testing.assert_allclose(after.body_points(), expected, atol=1e-6)
    assert after.points is bodies.points


def test_survival_follows_the_margin():
    """A box that leans falls from all starts beyond its margin, an upright one from none within."""
    box = shapes.leaning(0.0)
    within = Perturbation(np.radians(0.4 * static_margin(box)[0][0]), 20)
    result = survival(box, shapes.FAST, within, referee.drop, keys=["77"])
    assert (result.rate.tolist(), result.starts.tolist()) == ([1.0], [20])
    assert np.isnan(result.direction_deg[0])
    body = shapes.leaning(0.9)
    margin, azimuth = static_margin(body)
    # The centre of mass is a tenth of its height from the edge.
    np.testing.assert_allclose(margin, np.degrees(np.arctan2(0.05, 0.5)), rtol=1e-3)
    np.testing.assert_allclose(azimuth, 0.0, atol=1e-6)
    beyond = Perturbation(0.3, 40)
    q = beyond.quaternions("77")
    lean = np.degrees(np.arctan2(2 * q[:, 0] * q[:, 2], 1 - 2 * q[:, 2] ** 2))  # towards +x
    result = survival(body, shapes.FAST, beyond, referee.drop, keys=["77"])
    # Others fall too: set down on the far edge, it tips back and over the near one.
    assert 0 < result.rate[0] <= 1 - (lean > 1.05 * margin).mean() < 1
    assert abs(result.direction_deg[0]) < 20
    assert result.agreement[0] > 0.9


def test_survival_is_measured_from_upright():
    """An engine that moves nothing leaves each object as it was set down."""

    def still(bodies, protocol):
        count = len(bodies)
        upright = np.tile([1.0, 0, 0, 0], (count, 1))
        return Rest.from_states(
            np.zeros((count, 3)), upright, np.ones(count, int), np.ones(count, bool), [None] * count
        )

    body, perturbation = shapes.leaning(0.0), Perturbation(1.0, 200)
    result = survival(body, shapes.FAST, perturbation, still, keys=["5"])
    tilts = tilt_deg(perturbation.quaternions("5"))
    assert result.rate[0] == (tilts < shapes.FAST.threshold_deg).mean()
    assert 0.2 < result.rate[0] < 0.5


def test_invalid_starts_do_not_count():
    def every_second(bodies, protocol):
        rest = referee.drop(bodies, protocol)
        reasons: list[str | None] = ["broken" if i % 2 else None for i in range(len(bodies))]
        return Rest.from_states(
            rest.position, rest.quaternion, rest.steps, rest.status == "rest", reasons
        )

    bodies = concatenate([shapes.leaning(0.0), shapes.leaning(1.5)])
    result = survival(bodies, shapes.FAST, Perturbation(0.01, 4), every_second, keys=["1", "2"])
    assert result.starts.tolist() == [2, 2]
    assert result.rate.tolist() == [1.0, 0.0]
    assert np.isnan(result.direction_deg[0])
    assert abs(result.direction_deg[1]) < 1

    def none(bodies, protocol):
        zeros = np.zeros(len(bodies))
        return Rest.from_states(
            np.zeros((len(bodies), 3)),
            np.zeros((len(bodies), 4)),
            zeros.astype(int),
            zeros > 0,
            ["broken"] * len(bodies),
        )

    result = survival(bodies, shapes.FAST, Perturbation(0.01, 4), none, keys=["1", "2"])
    assert np.isnan(result.rate).all()


def test_calls_are_bounded_and_cutting_changes_nothing(monkeypatch):
    bodies = concatenate([shapes.leaning(s) for s in (0.0, 0.8, 1.5)])
    perturbation, sizes = Perturbation(0.2, 7), []

    def counted(turned, protocol):
        sizes.append(len(turned))
        return referee.drop(turned, protocol)

    whole = survival(bodies, shapes.FAST, perturbation, counted, keys=KEYS)
    monkeypatch.setattr("sim_mjx.perturb.CALL_BYTES", 5 * body_bytes(bodies))
    cut = survival(bodies, shapes.FAST, perturbation, counted, keys=KEYS)
    assert sizes == [21, 5, 5, 5, 5, 1]
    assert cut.rate.tolist() == whole.rate.tolist()
    alone = survival(bodies[1], shapes.FAST, perturbation, referee.drop, keys=KEYS[1:2])
    assert alone.rate[0] == whole.rate[1]
    assert alone.direction_deg[0] == pytest.approx(whole.direction_deg[1], nan_ok=True)


@pytest.mark.slow
def test_mjx_and_c_agree_on_survival():
    """Far beyond the margins of some: the same starts fall in both engines."""
    names = ("towel3", "lantern", "table", "crate", "stool2", "pallet", "couch2", "osakaChair")
    bodies = [body_from_mesh(shapes.mesh_path(name), shapes.FAST) for name in names]
    width = bodies[0].points.shape[1]
    batch = concatenate([body for body in bodies if body.points.shape[1] == width])
    keys = [f"{i:x}" for i in range(len(batch))]
    both = [
        survival(batch, shapes.FAST, Perturbation(0.5, 16), resolve(name).drop, keys=keys)
        for name in ("mjx", "mujoco")
    ]
    assert len({*both[1].rate}) > 2  # neither all nor none
    # One start of an object may be the one that stands on an edge.
    assert np.abs(both[0].rate - both[1].rate).max() <= 1 / 16
    assert np.abs(both[0].rate - both[1].rate).mean() <= 1 / 64


def test_a_turned_body_is_not_told_the_margin_of_the_pose_before():
    bodies = with_margin(shapes.leaning(0.5))
    quaternion = Perturbation(0.3, 1).quaternions("ab12")
    after = turned(bodies, quaternion)
    assert told_margin(bodies)[0][0] == static_margin(bodies)[0][0]
    assert told_margin(after)[0][0] == static_margin(after)[0][0] != told_margin(bodies)[0][0]
