"""Contact rules and the footing of a warp's bodies: what of a step reads support points.

The rules are those of `sim_mjx.contact`, one thread a body.

Legend: K support points, W bodies of a warp, C contacts.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sim_mjx.contact import CONTACTS
from sim_mjx.slim import vectors as vec
from sim_mjx.slim.contacts import Choose
from sim_mjx.slim.vectors import Matrix, Scalar, Vector
from sim_mjx.slim.warp import SELDOM, UNROLLED, Memory, any_of


def rule_of_warp(here: Memory, skin: Scalar) -> Choose:
    choose = _polygon_corners if "start" in here.refs else _skin_points

    def rule(up: Vector, height: Scalar):
        chosen, valid = choose(here, skin, up, height)
        corners = zip(*map(here.point, chosen), strict=True)
        x, y, z = map(here.over_contacts, corners)
        # Not an array of truth values, which take a register each.
        return (x, y, z), here.over_contacts([v.astype(jnp.int32) for v in valid]) > 0

    return rule


def _lowest(
    here: Memory,
    up: Vector,
    height: Scalar,
    *,
    wanted: Bool[Array, ""] | None = None,
    unrolled: int = UNROLLED,
) -> tuple[Scalar, Int[Array, " W"]]:
    """The least height over the ground, and the first point that has it."""

    def look(best, point, index):
        value = vec.dot(point, up) + height
        lower = value < best[0]
        return jnp.where(lower, value, best[0]), jnp.where(lower, index, best[1])

    start = jnp.full(height.shape, jnp.inf, height.dtype), jnp.zeros(height.shape, jnp.int32)
    return here.scan(start, look, wanted=wanted, unrolled=unrolled)


def _polygon_corners(here: Memory, skin: Scalar, up: Vector, height: Scalar):
    """`contact.polygon_rule`: an index for each contact, and whether it is one."""
    del skin
    lane, refs = here.lane, here.refs
    _, deepest = _lowest(here, up, height)
    first, count = refs["start"][lane, deepest], refs["count"][lane, deepest]

    def look(carry):
        turn, best, entry = carry
        valid = turn < count
        at = first + jnp.where(valid, turn, 0)
        normal = refs["normals"][lane, at, 0], refs["normals"][lane, at, 1]
        normal = *normal, refs["normals"][lane, at, 2]
        downward = -vec.dot(normal, up)
        better = valid & (downward > best)
        return turn + 1, jnp.where(better, downward, best), jnp.where(better, at, entry)

    start = 0, jnp.full(lane.shape, -jnp.inf, height.dtype), first
    _, _, entry = jax.lax.while_loop(lambda carry: any_of(carry[0] < count), look, start)
    index = here.corners(entry)
    distinct = [index[0] >= 0]
    for k in range(1, CONTACTS):
        new = index[k] != index[0]
        for earlier in index[1:k]:
            new &= index[k] != earlier
        distinct.append(new)
    return index, distinct


def _skin_points(here: Memory, skin: Scalar, up: Vector, height: Scalar):
    """`contact.skin_rule`, likewise; three passes over the points."""
    lowest, first = _lowest(here, up, height)
    near = jnp.minimum(lowest + skin, 0.0)
    zero = jnp.zeros(height.shape, jnp.int32)
    least = jnp.full(height.shape, -jnp.inf, height.dtype)

    a = here.point(first)

    def allowed(point):
        value = vec.dot(point, up) + height
        return (value < near) | (value <= lowest)

    def further(best, point, index):
        from_a = vec.sub(point, a)
        value = vec.dot(from_a, from_a)
        better = allowed(point) & (value > best[0])
        return jnp.where(better, value, best[0]), jnp.where(better, index, best[1])

    _, second = here.scan((least, zero), further, unrolled=4)
    b = here.point(second)
    across = vec.cross(up, vec.sub(b, a))

    def beside(best, point, index):
        value = vec.dot(vec.sub(point, a), across)
        inside = allowed(point)
        left, right = inside & (value > best[0]), inside & (-value > best[2])
        return (
            jnp.where(left, value, best[0]),
            jnp.where(left, index, best[1]),
            jnp.where(right, -value, best[2]),
            jnp.where(right, index, best[3]),
        )

    left, third, right, fourth = here.scan((least, zero, least, zero), beside, unrolled=4)
    new_second = second != first
    valid = [
        first >= 0,
        new_second,
        new_second & (third != second) & (left > 0),
        new_second & (fourth != second) & (right > 0),
    ]
    return [first, second, third, fourth], valid


def footing(
    here: Memory, skin: Scalar, axes: Matrix, centre: Vector, wanted: Bool[Array, ""]
) -> Bool[Array, " W"]:
    """`settling.spans_area`: whether the points below ground span more than a line.

    Args:
        here: the warp's bodies.
        skin: depth of the contact skin, m.
        axes: rotation of the inertial frame.
        centre: of mass, in the world.
        wanted: whether the warp needs it at all, else it means nothing.
    """
    scan = functools.partial(here.scan, wanted=wanted, unrolled=SELDOM)
    _, first = _lowest(here, axes[2], centre[2], wanted=wanted, unrolled=SELDOM)
    corner, zero = here.point(first), jnp.zeros_like(skin)

    def seen(point: Vector) -> tuple[Bool[Array, " W"], Scalar, Scalar]:
        away = vec.sub(point, corner)
        below = vec.dot(point, axes[2]) + centre[2] < 0
        return below, vec.dot(axes[0], away), vec.dot(axes[1], away)

    def further(best, point, index):
        del index
        below, x, y = seen(point)
        reach = x * x + y * y
        better = below & (reach > best[0])
        return tuple(
            jnp.where(better, new, old) for new, old in zip((reach, x, y), best, strict=True)
        )

    _, x, y = scan((zero - 1, zero, zero), further)
    length = jnp.sqrt(x * x + y * y)

    def beside(best, point, index):
        del index
        below, here_x, here_y = seen(point)
        across = jnp.abs(here_x * y - here_y * x)
        return jnp.where(below & (across > best), across, best)

    across = scan(zero, beside)
    return across > 0.1 * skin * jnp.maximum(length, 0.1 * skin)
