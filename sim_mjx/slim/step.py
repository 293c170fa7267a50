"""Steps of a batch of free bodies: smooth motion, contacts, Newton solve, Euler.

MJX's coordinates of a free body are the position of the body frame's origin and its rotation. Here
rotation and spin belong to the inertial frame, whose axes do not move in the body; that changes no
step but for rounding. The origin stays: Euler moves it along a straight line, so that stepping the
centre of mass instead would end elsewhere.

Legend: S bodies, K support points.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sim_mjx import world
from sim_mjx.protocol import Protocol
from sim_mjx.slim import vectors as vec
from sim_mjx.slim.constants import Constants, constants
from sim_mjx.slim.contacts import Choose, find_contacts, rule_of
from sim_mjx.slim.loops import Machine
from sim_mjx.slim.solver import Mass, Twist, solve
from sim_mjx.slim.vectors import Matrix, Quaternion, Scalar, Vector


class Shape(NamedTuple):
    """What does not change, in the inertial frame."""

    mass: Scalar
    moments: Vector
    offset: Vector  # from the body frame's origin to the centre of mass
    trace: Scalar  # of MJX's mass matrix


class Motion(NamedTuple):
    origin: Vector  # of the body frame, in the world
    rotation: Quaternion  # of the inertial frame
    velocity: Vector  # of the origin, world axes
    spin: Vector  # inertial axes
    warm: Twist  # the last acceleration, in the axes of the velocities


def simulate(
    protocol: Protocol,
    body: world.Body,
    state: world.State,
    steps: int | Int[Array, ""],
    active: Bool[Array, " S"] | None = None,
    *,
    early: bool | None = None,
) -> world.State:
    """Steps a batch of bodies: `world.simulate` but for rounding.

    Args:
        protocol: what is simulated.
        body: S bodies.
        state: of each.
        steps: how many.
        active: bodies for which anyone waits, by default all; the others mean nothing afterwards.
        early: whether loops end before their cap, see `loops.Machine`; by default on a CPU.
    """
    early = jax.default_backend() == "cpu" if early is None else early
    machine = Machine(jnp.any if early else None, stacked=True)
    numbers, shape, choose = constants(protocol), shape_of(body), rule_of(body)

    def one(_, motion: Motion) -> Motion:
        return step(numbers, choose, shape, motion, machine=machine, live=active)

    inertial = vec.quaternion(body.inertia_quat)
    motion = jax.lax.fori_loop(0, steps, one, enter(inertial, state))
    return leave(inertial, motion)


def step(
    c: Constants, choose: Choose, shape: Shape, motion: Motion, *, machine: Machine, live=None
) -> Motion:
    """One step.

    Args:
        c: the protocol's numbers.
        choose: the contact rule.
        shape: of S bodies.
        motion: of each.
        machine: what runs it.
        live: bodies for which anyone waits; by default all.
    """
    motion = motion._replace(rotation=vec.unit(motion.rotation))
    axes = vec.to_matrix(motion.rotation)
    mass = _mass(shape, axes)
    velocity = _at_centre(mass, (motion.velocity, vec.apply(axes, motion.spin)))
    smooth = _smooth(c, shape, mass, motion, axes, velocity[1])
    centre = vec.add(motion.origin, mass.offset)
    contacts = find_contacts(c, choose, shape.mass, axes, centre[2], velocity, smooth)
    warm = _at_centre(mass, (motion.warm[0], vec.apply(axes, motion.warm[1])))
    guess = jax.tree.map(jnp.subtract, warm, smooth)
    e = solve(c, mass, contacts, guess, machine=machine, live=live)
    linear, angular = jax.tree.map(jnp.add, smooth, e)
    acceleration = (
        vec.sub(linear, vec.cross(angular, mass.offset)),
        vec.apply(vec.transpose(axes), angular),
    )
    return _euler(c, motion, acceleration)


def pose(shape: Shape, motion: Motion) -> tuple[Matrix, Vector]:
    """Axes of the inertial frame and the centre of mass, in the world."""
    axes = vec.to_matrix(vec.unit(motion.rotation))
    return axes, vec.add(motion.origin, vec.apply(axes, shape.offset))


def _mass(shape: Shape, axes: Matrix) -> Mass:
    """The mass in the world's axes."""
    x, y, z = (vec.apply(axes, vec.multiply(shape.moments, row)) for row in axes)
    return Mass(shape.mass, (x, y, z), vec.apply(axes, shape.offset), shape.trace)


def _smooth(
    c: Constants, shape: Shape, mass: Mass, motion: Motion, axes: Matrix, spin: Vector
) -> Twist:
    """The acceleration without contact, at the centre of mass, world axes.

    MuJoCo's Jacobians have no rate of change, so its linear part lacks the centripetal acceleration
    of the centre about the origin.
    """
    torque = vec.cross(vec.multiply(shape.moments, motion.spin), motion.spin)
    angular = vec.divide(torque, shape.moments)
    x, y, z = vec.cross(spin, vec.cross(spin, mass.offset))
    return (-x, -y, c.gravity - z), vec.apply(axes, angular)


def _at_centre(mass: Mass, twist: Twist) -> Twist:
    """From the origin's velocity (or acceleration) to that of the centre of mass."""
    linear, angular = twist
    return vec.add(linear, vec.cross(angular, mass.offset)), angular


def _euler(c: Constants, motion: Motion, acceleration: Twist) -> Motion:
    """Semi-implicit: the new velocities move the body."""
    linear, angular = acceleration
    velocity = vec.add(motion.velocity, vec.scale(c.timestep, linear))
    spin = vec.add(motion.spin, vec.scale(c.timestep, angular))
    return Motion(
        origin=vec.add(motion.origin, vec.scale(c.timestep, velocity)),
        rotation=vec.turned(motion.rotation, spin, c.timestep),
        velocity=velocity,
        spin=spin,
        warm=acceleration,
    )


def shape_of(body: world.Body) -> Shape:
    to_inertial = vec.transpose(vec.to_matrix(vec.quaternion(body.inertia_quat)))
    offset = vec.apply(to_inertial, vec.vector(body.com))
    moments = vec.vector(body.inertia)
    about_origin = sum(moments) + 2 * body.mass * vec.dot(offset, offset)
    return Shape(body.mass, moments, offset, 3 * body.mass + about_origin)


def enter(inertial: Quaternion, state: world.State) -> Motion:
    to_inertial = vec.transpose(vec.to_matrix(inertial))
    return Motion(
        origin=vec.vector(state.qpos[:, :3]),
        rotation=vec.compose(vec.quaternion(state.qpos[:, 3:]), inertial),
        velocity=vec.vector(state.qvel[:, :3]),
        spin=vec.apply(to_inertial, vec.vector(state.qvel[:, 3:])),
        warm=(
            vec.vector(state.warmstart[:, :3]),
            vec.apply(to_inertial, vec.vector(state.warmstart[:, 3:])),
        ),
    )


def leave(inertial: Quaternion, motion: Motion) -> world.State:
    to_body = vec.to_matrix(inertial)
    rotation = vec.compose(motion.rotation, vec.inverse(inertial))
    qvel = (*motion.velocity, *vec.apply(to_body, motion.spin))
    warm = (*motion.warm[0], *vec.apply(to_body, motion.warm[1]))
    parts = ((*motion.origin, *rotation), qvel, warm)
    return world.State(*(jnp.stack(part, axis=-1) for part in parts))
