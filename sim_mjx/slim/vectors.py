"""Three-vectors and quaternions as tuples of arrays over the batch.

Written out by component so that no product is a batched matrix product: those would leave the fused
loop, and on some accelerators round to fewer bits.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, "..."]  # a number of each body (S,), or of each of its contacts (C, S)
Vector = tuple[Scalar, Scalar, Scalar]
Matrix = tuple[Vector, Vector, Vector]  # rows
Quaternion = tuple[Scalar, Scalar, Scalar, Scalar]  # wxyz

# MJX takes a vector for zero when no component is above this.
_ZERO = 1e-8


def vector(array: Float[Array, "S 3"]) -> Vector:
    """The columns of an array."""
    return array[:, 0], array[:, 1], array[:, 2]


def quaternion(array: Float[Array, "S 4"]) -> Quaternion:
    """The columns of an array."""
    return array[:, 0], array[:, 1], array[:, 2], array[:, 3]


def add(a: Vector, b: Vector) -> Vector:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def sub(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def scale(factor: Scalar | float, a: Vector) -> Vector:
    return factor * a[0], factor * a[1], factor * a[2]


def total(a: Vector) -> Vector:
    """The sum over contacts."""
    return a[0].sum(axis=0), a[1].sum(axis=0), a[2].sum(axis=0)


def multiply(a: Vector, b: Vector) -> Vector:
    """Component by component."""
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


def divide(a: Vector, b: Vector) -> Vector:
    """Component by component."""
    return a[0] / b[0], a[1] / b[1], a[2] / b[2]


def dot(a: Vector, b: Vector) -> Scalar:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vector, b: Vector) -> Vector:
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def apply(m: Matrix, a: Vector) -> Vector:
    """m @ a."""
    return dot(m[0], a), dot(m[1], a), dot(m[2], a)


def transpose(m: Matrix) -> Matrix:
    x, y, z = m
    return (x[0], y[0], z[0]), (x[1], y[1], z[1]), (x[2], y[2], z[2])


def norm(*components: Scalar) -> Scalar:
    """Length, with MJX's rule that a vector of tiny components has none."""
    total = components[0] * components[0]
    tiny = jnp.abs(components[0]) <= _ZERO
    for component in components[1:]:
        total = total + component * component
        tiny &= jnp.abs(component) <= _ZERO
    return jnp.where(tiny, 0.0, jnp.sqrt(total))


def compose(u: Quaternion, v: Quaternion) -> Quaternion:
    """The rotation v, then u."""
    return (
        u[0] * v[0] - u[1] * v[1] - u[2] * v[2] - u[3] * v[3],
        u[0] * v[1] + u[1] * v[0] + u[2] * v[3] - u[3] * v[2],
        u[0] * v[2] - u[1] * v[3] + u[2] * v[0] + u[3] * v[1],
        u[0] * v[3] + u[1] * v[2] - u[2] * v[1] + u[3] * v[0],
    )


def inverse(q: Quaternion) -> Quaternion:
    return q[0], -q[1], -q[2], -q[3]


def unit(q: Quaternion) -> Quaternion:
    factor = 1.0 / jnp.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    return q[0] * factor, q[1] * factor, q[2] * factor, q[3] * factor


def to_matrix(q: Quaternion) -> Matrix:
    """The matrix of a unit quaternion."""
    w, x, y, z = q
    return (
        (w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z),
    )


def turned(q: Quaternion, velocity: Vector, time: float) -> Quaternion:
    """q after turning with an angular velocity (in q's own frame) for a time, s."""
    speed = norm(*velocity)
    half = 0.5 * time * speed
    factor = jnp.sin(half) / jnp.where(speed == 0.0, 1.0, speed)
    return unit(compose(q, (jnp.cos(half), *scale(factor, velocity))))
