"""One MJX step against one step of C MuJoCo, from the same state."""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from sim_mjx import concatenate, contact, referee, referee_one, world
from sim_mjx.meshes import body_from_mesh
from sim_mjx.mjx_import import GeomType, collision_driver
from tests.sim import shapes

# Float32 against float64 at gains of 1e3/s^2 on penetrations of 1e-4 m: one step of 1 ms changes
# velocity by about 1e-2, of which the solver's 4 iterations and rounding leave this (m/s, rad/s).
STEP_TOLERANCE = 2e-3
# Most steps agree far better.
STEP_MEDIAN = 2e-6
# A body starts exactly touching; which points touch in the first steps is decided by rounding.
ONSET = 20
NAMES = ("lantern", "table", "rangeHood", "towel3", "tatami")


@pytest.fixture(scope="module")
def trajectory():
    """Bodies with C states along their drops: (body index, qpos, qvel, warmstart, next qvel)."""
    bodies = concatenate([body_from_mesh(shapes.mesh_path(name), shapes.EVAL) for name in NAMES])
    rows = []
    for i, body in enumerate(referee.place(bodies, shapes.EVAL)):
        model = referee_one.compile_model(body, shapes.EVAL)
        data = mujoco.MjData(model)
        data.qvel[:] = [0.1, 0.0, 0.0, 0.3, -0.2, 0.1]
        for step in range(600):
            before = (data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy())
            mujoco.mj_step(model, data)
            if step >= ONSET and step % 5 == 0:
                rows.append((i, *before, data.qvel.copy(), data.qpos.copy(), data.ncon))
    return bodies, rows


def test_step_by_step(trajectory):
    bodies, rows = trajectory
    columns = (np.array(column) for column in zip(*rows, strict=True))
    index, qpos, qvel, warmstart, next_qvel, next_qpos, contacts = columns
    body = jax.tree.map(lambda leaf: leaf[index], world.simulation_body(bodies, shapes.EVAL))
    state = world.State(*(jnp.asarray(x, jnp.float32) for x in (qpos, qvel, warmstart)))
    after = jax.jit(jax.vmap(functools.partial(world.step, shapes.EVAL)))(body, state)
    error = np.abs(np.asarray(after.qvel) - next_qvel).max(axis=1)
    assert (contacts > 0).mean() > 0.5  # the drops do touch the ground
    assert np.median(error) < STEP_MEDIAN
    assert error.max() < STEP_TOLERANCE
    assert np.abs(np.asarray(after.qpos) - next_qpos).max() < STEP_TOLERANCE * 1e-3 + 1e-6


def test_inverse_weight_is_one_over_mass(trajectory):
    bodies, _ = trajectory
    for body in referee.place(bodies, shapes.EVAL):
        model = referee_one.compile_model(body, shapes.EVAL)
        np.testing.assert_allclose(model.body_invweight0[1, 0] * body.mass, 1.0, rtol=1e-6)


def test_collider_is_registered_only_while_tracing(trajectory):
    pair = (GeomType.PLANE, GeomType.MESH)
    stock = collision_driver._COLLISION_FUNC[pair]
    points = jnp.zeros((4, 3))
    rule = contact.skin_rule(points, jnp.float32(1e-3))
    with contact.plane_mesh_rule(points, rule):
        assert collision_driver._COLLISION_FUNC[pair] is not stock
    assert collision_driver._COLLISION_FUNC[pair] is stock
    with pytest.raises(RuntimeError), contact.plane_mesh_rule(points, rule):
        raise RuntimeError
    assert collision_driver._COLLISION_FUNC[pair] is stock
