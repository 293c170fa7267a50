"""The toybox's own arithmetic against simulated bodies: its objects stand, and by that margin."""

import numpy as np
import pytest

import sim_mjx
from dso_jax import toybox
from sim_mjx import margin, referee

COUNT = 44  # four of each family
# Float32 points; and a body keeps the points that are extreme along a fixed set of directions, so
# its polygon may cut a hundredth of a voxel off a corner.
MARGIN_ATOL_DEG = 0.05


@pytest.fixture(scope="module")
def bodies():
    solid = toybox.make_objects(toybox.split("heldout", COUNT))
    made, reasons = sim_mjx.bodies_from_occupancy(2.0 * solid - 1.0)
    assert reasons == [None] * COUNT
    return made


def test_margin_is_that_of_the_simulated_body(bodies):
    ours = [toybox.make_object(seed).margin_deg for seed in toybox.split("heldout", COUNT)]
    np.testing.assert_allclose(margin.static_margin_deg(bodies), ours, atol=MARGIN_ATOL_DEG)


def test_every_object_stands_when_dropped(bodies):
    protocol = sim_mjx.Protocol.preset("fast")
    rest = referee.drop(bodies, protocol)
    assert rest.stable(protocol).all()
    assert rest.tilt_deg.max() < 2.0
