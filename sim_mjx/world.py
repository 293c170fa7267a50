"""The MJX world of one free body on a plane, with every number of the body left open.

A template model is compiled once a protocol; per object the leaves of mass, inertia and frame are
replaced and the contact points are handed to the collider, so that `vmap` steps different objects.

Legend: leading S is the batch axis that `vmap` takes away; K support points.
"""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sim_mjx import contact, scene, settling
from sim_mjx.bodies import ARRAYS, HullPolygons, RigidBody
from sim_mjx.mjx_import import mjx
from sim_mjx.protocol import Protocol


class State(NamedTuple):
    """What one body carries from step to step."""

    qpos: Float[Array, "*S 7"]
    qvel: Float[Array, "*S 6"]
    warmstart: Float[Array, "*S 6"]


class Body(NamedTuple):
    """What the simulation reads of an object; numpy until it enters a program."""

    points: Float[Array, "*S K 3"]
    mass: Float[Array, "*S"]
    com: Float[Array, "*S 3"]
    inertia: Float[Array, "*S 3"]
    inertia_quat: Float[Array, "*S 4"]
    start: Float[Array, "*S 3"]  # start position of the body frame
    skin: Float[Array, "*S"]  # depth of the contact skin, m
    polygons: HullPolygons | None = None


def simulation_body(bodies: RigidBody, protocol: Protocol, dtype: type = np.float32) -> Body:
    """The numbers of a batch as the simulation wants them: one type, lowest point at z = 0."""
    low, high = bodies.box()
    start, skin = _on_the_ground(low[:, 2]), protocol.skin * (high - low).max(axis=1)
    body = unplaced_body(bodies, protocol, dtype)
    return body._replace(start=np.asarray(start, dtype), skin=np.asarray(skin, dtype))


def unplaced_body(bodies: RigidBody, protocol: Protocol, dtype: type = np.float32) -> Body:
    """The same without start and skin, which `placed` finds: nothing is worked out here."""
    numbers: dict[str, Any] = {name: np.asarray(getattr(bodies, name), dtype) for name in ARRAYS}
    numbers |= {"start": np.zeros((len(bodies), 3), dtype), "skin": np.zeros(len(bodies), dtype)}
    return Body(**numbers, polygons=bodies.polygons if protocol.contact == "c4" else None)


def placed(skin: float, body: Body) -> Body:
    """One body with its lowest point on the ground, and `skin` object sizes deep."""
    rows = jnp.stack([_rotate(body.inertia_quat, axis) for axis in jnp.eye(3)], axis=1)
    # Written out: as a matrix product an accelerator may round it to ten bits.
    x, y, z = body.points.T
    axes = [row[0] * x + row[1] * y + row[2] * z for row in rows]
    low, high = (jnp.stack([end(axis) for axis in axes]) for end in (jnp.min, jnp.max))
    start = jnp.stack([0 * low[2], 0 * low[2], -(low[2] + body.com[2])])
    return body._replace(start=start, skin=skin * (high - low).max())


def start_position(bodies: RigidBody) -> Float[np.ndarray, "B 3"]:
    """Start position of each body frame: lowest support point on the ground, x = y = 0."""
    return _on_the_ground(bodies.box()[0][:, 2])


def _on_the_ground(lowest: Float[np.ndarray, " B"]) -> Float[np.ndarray, "B 3"]:
    return np.stack([0 * lowest, 0 * lowest, -lowest], axis=1)


@functools.lru_cache(maxsize=16)
def template(protocol: Protocol) -> mujoco.MjModel:
    """A plane and one free body with a mesh geom, under the protocol's options."""
    spec = scene.ground(protocol)
    spec.option.iterations = protocol.solver_iterations
    spec.option.ls_iterations = protocol.linesearch_iterations
    # Without joint damping the implicit damping term is zero; it would factorise the mass twice.
    spec.option.disableflags = int(mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
    # The template's own mesh is never touched: the collider brings its points.
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float64)
    spec.add_mesh(name="body", uservert=corners.ravel())
    body = spec.worldbody.add_body(name="body")
    body.add_freejoint()
    scene.add_hull(body, "body", protocol)
    return spec.compile()


@functools.lru_cache(maxsize=16)
def _mjx_template(protocol: Protocol) -> tuple[mjx.Model, mjx.Data]:
    model = template(protocol)
    with jax.ensure_compile_time_eval():  # may be called while a program is traced
        return mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")


def initial_state(body: Body) -> State:
    """Upright and at rest at the start position; batched or not."""
    batch = body.start.shape[:-1]
    upright = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0, 0.0]), (*batch, 4))
    pose = jnp.concatenate([body.start, upright], axis=-1)
    return State(pose, jnp.zeros((*batch, 6)), jnp.zeros((*batch, 6)))


def step(protocol: Protocol, body: Body, state: State) -> State:
    """One `mjx.step` of one body; vmap it over bodies and states.

    Matrix products run at full precision here and only here: TF32 moves tilts by degrees.
    """
    model, data = _mjx_template(protocol)
    model = model.tree_replace(
        {
            "body_mass": model.body_mass.at[1].set(body.mass),
            "body_inertia": model.body_inertia.at[1].set(body.inertia),
            "body_ipos": model.body_ipos.at[1].set(body.com),
            "body_iquat": model.body_iquat.at[1].set(body.inertia_quat),
            # Contacts read the translational entry, which is 1/m for a free body.
            "body_invweight0": model.body_invweight0.at[1, 0].set(1.0 / body.mass),
            "geom_pos": model.geom_pos.at[1].set(body.com),
            "geom_quat": model.geom_quat.at[1].set(body.inertia_quat),
        }
    )
    data = data.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart)
    rule = contact.choose_rule(body.points, body.skin, body.polygons)
    with (
        jax.default_matmul_precision("highest"),
        contact.plane_mesh_rule(body.points, rule),
    ):
        after = mjx.step(model, data)
    return State(after.qpos, after.qvel, after.qacc_warmstart)


def simulate(protocol: Protocol, body: Body, state: State, steps: int | Int[Array, ""]) -> State:
    """That many steps of a batch of bodies."""
    one = jax.vmap(functools.partial(step, protocol))
    return jax.lax.fori_loop(0, steps, lambda _, s: one(body, s), state)


def has_footing(body: Body, state: State) -> Bool[Array, ""]:
    """Whether the points below ground span an area; see `settling.spans_area`."""
    position, quaternion = state.qpos[:3], state.qpos[3:]
    com = position + _rotate(quaternion, body.com)
    to_world = jax.vmap(lambda p: _rotate(quaternion, _rotate(body.inertia_quat, p)))
    world = to_world(body.points) + com
    return settling.spans_area(world, body.skin, jnp)


def _rotate(quaternion: Float[Array, " 4"], vector: Float[Array, " 3"]) -> Float[Array, " 3"]:
    w, axis = quaternion[0], quaternion[1:]
    turn = 2.0 * jnp.cross(axis, vector)
    return vector + w * turn + jnp.cross(axis, turn)
