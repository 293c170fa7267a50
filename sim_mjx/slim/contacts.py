"""Contact rows of a batch of bodies over the ground: which points, how stiff.

Legend: S bodies, K support points, C contacts.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from sim_mjx import contact, world
from sim_mjx.slim import vectors as vec
from sim_mjx.slim.constants import MINIMUM, Constants
from sim_mjx.slim.solver import Contacts, Twist
from sim_mjx.slim.vectors import Matrix, Scalar, Vector

# The up axis in the inertial frame and the height of the centre of mass -> points there (C, S), and
# which of them are contacts at all.
Choose = Callable[[Vector, Scalar], tuple[Vector, Bool[Array, "C S"]]]


def find_contacts(
    c: Constants,
    choose: Choose,
    mass: Scalar,
    axes: Matrix,
    height: Scalar,
    velocity: Twist,
    smooth: Twist,
) -> Contacts:
    """Contacts with the plane z = 0.

    Args:
        c: parameters of the contact.
        choose: the contact rule.
        mass: of S bodies, kg.
        axes: rotation of the inertial frame.
        height: of the centre of mass, m.
        velocity: at the centre of mass, world axes.
        smooth: acceleration without contact, likewise.
    """
    point, chosen = choose(axes[2], height)
    x, y, z = vec.apply(axes, point)
    distance = z + height
    # A contact sits halfway between the two surfaces.
    arm = (x, y, z - 0.5 * distance)
    impedance = _impedance(c, distance)
    softness = c.regularisation * (1 - impedance) / (impedance * mass)
    weight = jnp.where(chosen & (distance < 0), 1.0 / jnp.maximum(softness, MINIMUM), 0.0)
    linear, angular = jax.tree.map(lambda a, v: a + c.damping * v, smooth, velocity)
    x, y, z = vec.add(linear, vec.cross(angular, arm))
    reference = (z + c.stiffness * impedance * distance, c.friction * x, c.friction * y)
    return Contacts(arm, weight, reference)


def _impedance(c: Constants, distance: Scalar) -> Scalar:
    low, high, width, middle, power = c.impedance
    depth = jnp.abs(distance) / width
    below = depth**power / middle ** (power - 1)
    above = 1 - (1 - depth) ** power / (1 - middle) ** (power - 1)
    value = low + jnp.where(depth < middle, below, above) * (high - low)
    return jnp.where(depth > 1, high, jnp.clip(value, low, high))


def rule_of(body: world.Body) -> Choose:
    """The contact rule of S bodies as in `world.step`."""

    def one(body: world.Body, up, height):
        rule = contact.choose_rule(body.points, body.skin, body.polygons)
        index, valid = rule(up, contact.heights_over_ground(body.points, up, height))
        return body.points[index], valid

    def choose(up: Vector, height: Scalar):
        points, valid = jax.vmap(one, out_axes=-1)(body, jnp.stack(up, axis=-1), height)
        return (points[:, 0], points[:, 1], points[:, 2]), valid

    return choose
