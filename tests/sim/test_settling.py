"""What counts as rest: quiet, on some footing, and not falling so slowly that nobody sees it."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from sim_mjx import drop, referee, settling
from sim_mjx.meshes import body_from_mesh
from tests.sim import shapes

# Max |qvel| at the first checks of a real shower door in C: three seconds later it lies flat.
DOOR = (1.98e-4, 5.14e-5, 6.01e-5, 7.81e-5, 1.08e-4, 1.54e-4, 2.23e-4, 3.26e-4, 4.79e-4, 7.03e-4)


def rests(speeds, footing=True, xp=np):
    """Whether each check, after so many speeds, lets the object go."""
    state, found = settling.begin((1,), xp), []
    for speed in speeds:
        state = settling.check(state, xp.array([speed]), footing, shapes.EVAL, xp)
        found.append(bool(settling.at_rest(state, shapes.EVAL)[0]))
    return found


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_a_fall_that_is_still_slow_is_not_rest(xp):
    assert max(DOOR) < shapes.EVAL.quiet_speed
    assert not any(rests(DOOR, xp=xp)[6:])
    # Once it has stopped growing, the quiet checks count as they are.
    assert rests([*DOOR, 7e-4], xp=xp)[-1]


@pytest.mark.parametrize(
    "speeds", [[1e-3] * 5, [1e-3, 2e-3, 1e-3, 2e-3, 3e-3], [5e-3, 1e-3, 1e-4, 1e-5, 0.0], [0.0] * 5]
)
def test_what_slows_down_or_wavers_rests_after_five_quiet_checks(speeds):
    assert rests(speeds) == [False] * 4 + [True]
    assert not any(rests(speeds, footing=False))
    assert not any(rests([2e-2, *speeds[1:]]))


def test_a_door_that_tips_over_slowly_is_not_stopped_early(shared_data):
    body = body_from_mesh(shared_data("objects/sweethome3d-cc0/showerDoor.obj"), shapes.EVAL)
    for simulate in (referee.drop, functools.partial(drop, step="slim")):
        rest = simulate(body, shapes.EVAL)
        assert rest.status[0] == "rest"
        assert rest.tilt_deg[0] == pytest.approx(90.0, abs=0.1)
        assert rest.steps[0] < shapes.EVAL.steps
