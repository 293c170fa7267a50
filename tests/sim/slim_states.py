"""Random states of the committed meshes, and two step codes compared on them in float64."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from sim_mjx import Protocol, RigidBody, concatenate, pool, slim, world
from sim_mjx.meshes import body_from_mesh
from tests.sim import shapes

KINDS = ("flying", "touching", "sliding", "rocking", "deep")
# Relative to the larger of speed and this (m/s, rad/s).
SLOWEST = 1e-3


class Case(NamedTuple):
    """Bodies in random states, float64; `kind` indexes KINDS."""

    body: world.Body
    state: world.State
    kind: np.ndarray


def small_bodies(protocol: Protocol) -> RigidBody:
    """The committed meshes of the smallest bucket."""
    paths = (shapes.DATA / entry["mesh"] for entry in shapes.manifest())
    bodies = [body_from_mesh(path, protocol) for path in paths]
    return concatenate([body for body in bodies if body.points.shape[1] == 64])


def random_case(bodies: RigidBody, protocol: Protocol, count: int, seed: int) -> Case:
    """As many states of each kind; call it where JAX has 64 bits."""
    rng = np.random.default_rng(seed)
    kind = np.arange(count) % len(KINDS)
    chosen = bodies[rng.integers(0, len(bodies), count)]
    flying, touching, sliding, rocking, deep = (kind == k for k in range(len(KINDS)))

    def normal(*shape):
        return rng.normal(size=shape)

    # Any orientation, or upright within a small tilt about a horizontal axis.
    axis = normal(count, 3) * [1.0, 1.0, 0.0]
    angle = np.where(rocking, rng.uniform(1e-3, 0.1, count), rng.choice([0, 1e-6, 1e-4], count))
    tilt = Rotation.from_rotvec(axis / np.linalg.norm(axis, axis=1, keepdims=True) * angle[:, None])
    turned = Rotation.random(count, rng=rng).as_quat()
    quaternion = np.where((flying | deep)[:, None], turned, tilt.as_quat())[:, [3, 0, 1, 2]]

    speed = rng.choice([0.0, 1e-3, 0.1, 1.0], count)[:, None]
    qvel = np.where(touching[:, None], 0.01, 1.0) * speed * normal(count, 6)
    qvel[sliding, :2] += rng.uniform(-2, 2, (sliding.sum(), 2))
    qvel[rocking, 3:6] += 0.5 * normal(rocking.sum(), 1) * axis[rocking]

    height = rng.uniform(1e-3, 0.5, count)
    height = np.where(deep, -rng.uniform(5e-3, 0.05, count), height)
    grounded = -(10.0 ** rng.uniform(-7, -3, count))
    height = np.where(touching | sliding | rocking, grounded, height)
    up = Rotation.from_quat(quaternion[:, [1, 2, 3, 0]]).as_matrix()[:, 2]
    lowest = np.einsum("bi,bki->bk", up, chosen.body_points()).min(axis=1)
    place = np.stack([*normal(2, count), height - lowest], axis=1)

    warm = rng.choice([0.0, 1.0, 30.0], count)[:, None] * normal(count, 6)
    warm[:, 2] -= rng.choice([0.0, protocol.gravity], count)
    body = world.simulation_body(chosen, protocol, np.float64)
    pose = np.concatenate([place, quaternion], axis=1)
    state = world.State(*(jnp.asarray(part) for part in (pose, qvel, warm)))
    return Case(jax.tree.map(jnp.asarray, body), state, kind)


def relative_error(protocol: Protocol, case: Case) -> dict[int, np.ndarray]:
    """Difference in qvel, slim to stock, after one step and after 100, relative to the speed."""
    programs = [
        pool._compile(  # with the options that compile faster, where this XLA has them
            jax.jit(functools.partial(simulate, protocol)).lower(case.body, case.state, 1),
            "stock",
            "cpu",
        )
        for simulate in (world.simulate, slim.simulate)
    ]
    errors = {}
    for steps in (1, 100):
        stock, ours = (np.asarray(run(case.body, case.state, steps).qvel) for run in programs)
        assert stock.dtype == np.float64
        speed = np.maximum(np.abs(stock).max(axis=1), SLOWEST)
        errors[steps] = np.abs(stock - ours).max(axis=1) / speed
    return errors
