"""MJX's Newton solver for at most four contacts of one free body.

The unknown is e, the acceleration minus the smooth one (what the body would have without contact):
linear at the centre of mass and angular, both along the world's axes. There the mass matrix is
m * 1 and a 3x3 inertia, and the Jacobian of a contact with arm r is [1, -[r]x]. Nothing of the
solver but its two norms depends on the coordinates, so the iterates are those of MJX.

A contact has four rows, the edges n +- mu x and n +- mu y of its friction pyramid (n is z). A row's
value is linear in its three components, so those are what is kept, tangential ones times mu.

Legend: S the batch, C contacts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sim_mjx.slim import vectors as vec
from sim_mjx.slim.cholesky import solve_symmetric
from sim_mjx.slim.constants import Constants
from sim_mjx.slim.linesearch import Quadratic, edges, search_length
from sim_mjx.slim.loops import Machine, repeat
from sim_mjx.slim.vectors import Scalar, Vector

Twist = tuple[Vector, Vector]  # linear and angular


class Contacts(NamedTuple):
    """Contacts, arrays (C, S); those that do not touch have no weight.

    Attributes:
        arm: from the centre of mass, world axes, m.
        weight: D = 1/r of each contact's rows, kg.
        reference: row components of J (smooth acceleration) - reference acceleration.
    """

    arm: Vector
    weight: Float[Array, "C S"]
    reference: Vector


class Mass(NamedTuple):
    """Mass in world axes.

    Attributes:
        mass: kg.
        inertia: rows, about the centre of mass, kg m^2.
        offset: from the body frame's origin to the centre of mass, m.
        trace: of MJX's mass matrix.
    """

    mass: Scalar
    inertia: vec.Matrix
    offset: Vector
    trace: Scalar


class _Iterate(NamedTuple):
    e: Twist
    rows: Vector
    gradient: Twist
    gauss: Scalar
    cost: Scalar
    previous: Scalar


def solve(
    c: Constants, mass: Mass, contacts: Contacts, warm: Twist, *, machine: Machine, live=None
) -> Twist:
    """Minimises Gauss's cost plus that of the contacts over e.

    Args:
        c: caps and tolerances.
        mass: of the body.
        contacts: up to four.
        warm: a first guess beside e = 0; the cheaper one is taken.
        machine: what runs it.
        live: bodies for which anyone waits; by default all.

    Returns:
        e.
    """
    endless = jnp.full_like(mass.mass, jnp.inf)
    warm_start, cold_start = (
        _evaluate(c, mass, contacts, guess, endless)
        for guess in (warm, jax.tree.map(jnp.zeros_like, warm))
    )
    better = warm_start.cost < cold_start.cost
    start = jax.tree.map(lambda a, b: jnp.where(better, a, b), warm_start, cold_start)

    def unfinished(at: _Iterate) -> Bool[Array, " S"]:
        improvement = (at.previous - at.cost) / mass.trace
        gradient = _gradient_norm(mass, at.gradient) / mass.trace
        return ~((improvement < c.tolerance) | (gradient < c.tolerance))

    def improve(at: _Iterate) -> _Iterate:
        direction = _newton_direction(c, mass, contacts, at)
        gauss = Quadratic(
            at.gauss,
            _inner(direction, _momentum(mass, at.e)),
            0.5 * _inner(direction, _momentum(mass, direction)),
        )
        along = _components(c, contacts.arm, direction)
        magnitude = _acceleration_norm(mass, direction) * mass.trace
        length = search_length(
            c, contacts.weight, at.rows, along, gauss, magnitude, machine=machine
        )
        e = jax.tree.map(lambda a, d: a + length * d, at.e, direction)
        return _evaluate(c, mass, contacts, e, at.cost)

    return repeat(c.iterations, unfinished, improve, start, machine=machine, live=live).e


def _evaluate(c: Constants, mass: Mass, contacts: Contacts, e: Twist, previous) -> _Iterate:
    """Cost and gradient at e."""
    momentum = _momentum(mass, e)
    gauss = 0.5 * _inner(e, momentum)
    arm, weight, reference = contacts
    rows = vec.add(_components(c, arm, e), reference)
    pressed = [jnp.minimum(edge, 0.0) for edge in edges(*rows)]
    cost = gauss + 0.5 * (weight * sum(p * p for p in pressed)).sum(axis=0)
    # Minus the contact force, along the world's axes.
    force = (
        c.friction * weight * (pressed[0] - pressed[1]),
        c.friction * weight * (pressed[2] - pressed[3]),
        weight * (pressed[0] + pressed[1] + pressed[2] + pressed[3]),
    )
    linear, angular = vec.total(force), vec.total(vec.cross(arm, force))
    gradient = vec.add(momentum[0], linear), vec.add(momentum[1], angular)
    return _Iterate(e, rows, gradient, gauss, cost, previous)


def _components(c: Constants, arm: Vector, twist: Twist) -> Vector:
    """Normal and tangential acceleration of a contact point, tangential ones times mu."""
    x, y, z = vec.add(twist[0], vec.cross(twist[1], arm))
    return z, c.friction * x, c.friction * y


def _newton_direction(c: Constants, mass: Mass, contacts: Contacts, at: _Iterate) -> Twist:
    """- (M + J' D J over the pressed rows)^-1 gradient."""
    mu, (x, y, z) = c.friction, contacts.arm
    right, left, front, back = (
        jnp.where(edge < 0, contacts.weight, 0.0) for edge in edges(*at.rows)
    )
    # The weight of a contact's acceleration (x, y, z): symmetric, x and y do not mix.
    xx, yy, zz = mu * mu * (right + left), mu * mu * (front + back), right + left + front + back
    xz, yz = mu * (right - left), mu * (front - back)
    # Columns of that weight times -[r]x; then [r]x times them.
    columns = (
        (xz * y, yz * y - yy * z, zz * y - yz * z),
        (xx * z - xz * x, -yz * x, xz * z - zz * x),
        (-xx * y, yy * x, yz * x - xz * y),
    )
    mixed = [vec.total(column) for column in columns]
    angular = [vec.total(vec.cross(contacts.arm, column)) for column in columns]
    xx, yy, zz, xz, yz = (weight.sum(axis=0) for weight in (xx, yy, zz, xz, yz))
    lower = [
        [mass.mass + xx],
        [jnp.zeros_like(xx), mass.mass + yy],
        [xz, yz, mass.mass + zz],
        *(
            [*mixed[i], *(mass.inertia[i][k] + angular[i][k] for k in range(i + 1))]
            for i in range(3)
        ),
    ]
    x = solve_symmetric(lower, [-g for part in at.gradient for g in part])
    return (x[0], x[1], x[2]), (x[3], x[4], x[5])


def _momentum(mass: Mass, twist: Twist) -> Twist:
    return vec.scale(mass.mass, twist[0]), vec.apply(mass.inertia, twist[1])


def _inner(a: Twist, b: Twist) -> Scalar:
    return vec.dot(a[0], b[0]) + vec.dot(a[1], b[1])


def _gradient_norm(mass: Mass, gradient: Twist) -> Scalar:
    """Length in MJX's coordinates, where the linear part belongs to the body frame's origin."""
    force, torque = gradient
    return vec.norm(*force, *vec.add(torque, vec.cross(mass.offset, force)))


def _acceleration_norm(mass: Mass, twist: Twist) -> Scalar:
    linear, angular = twist
    return vec.norm(*vec.sub(linear, vec.cross(angular, mass.offset)), *angular)
