"""All steps up to a check in one kernel of an accelerator: a body a thread, its state in registers.

The arithmetic is that of `slim.step`; only what reads memory, the contact rule, is written anew.
A warp of 32 bodies ends its solver loops when none of its own needs another round, and bodies for
which no one waits cost nothing once they fill a warp. A body's numbers depend on no neighbour.

Legend: S bodies, K support points, V entries of the polygon table, W bodies of a warp, C contacts.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sim_mjx import world
from sim_mjx.contact import CONTACTS
from sim_mjx.protocol import Protocol
from sim_mjx.slim import step as slim_step
from sim_mjx.slim import vectors as vec
from sim_mjx.slim.constants import Constants, constants
from sim_mjx.slim.contacts import Choose
from sim_mjx.slim.loops import Machine
from sim_mjx.slim.vectors import Scalar, Vector

WARP = 32
_UNROLLED = 8  # points looked at between two tests of the loop over all


def has_kernel(device: Any) -> bool:
    """Whether this is a device for which the kernel is written: an NVIDIA GPU."""
    return device.platform == "gpu" and "cuda" in device.client.platform_version.lower()


def simulate(
    protocol: Protocol,
    body: world.Body,
    state: world.State,
    steps: int,
    *,
    active: Bool[Array, " S"] | None = None,
    interpret: bool = False,
) -> world.State:
    """Steps a batch of bodies: `slim.simulate` but for rounding.

    Args:
        protocol: what is simulated.
        body: S bodies.
        state: of each.
        steps: how many.
        active: bodies for which anyone waits; the states of others mean nothing afterwards.
        interpret: without an accelerator, to test.
    """
    count = body.mass.shape[0]
    if active is None:
        active = jnp.ones(count, bool)
    if count % WARP:
        body, state = jax.tree.map(_padded, (body, state))
        active = jnp.pad(active, (0, -count % WARP))
    inertial = vec.quaternion(body.inertia_quat)
    shape, motion = slim_step.shape_of(body), slim_step.enter(inertial, state)
    moved = _launch(constants(protocol), steps, body, shape, motion, active, interpret)
    after = slim_step.leave(inertial, moved)
    return jax.tree.map(lambda leaf: leaf[:count], after) if count % WARP else after


def _padded(leaf: Array) -> Array:
    return jnp.pad(leaf, [(0, -leaf.shape[0] % WARP)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")


def _launch(c: Constants, steps: int, body, shape, motion, active, interpret: bool):
    from jax.experimental import pallas as pl  # a quarter of a second that a CPU can do without

    memory: dict[str, Any] = {"points": body.points.transpose(2, 1, 0), "skin": body.skin}
    if body.polygons is not None:
        table = body.polygons
        memory |= {name: getattr(table, name) for name in ("start", "count", "normals", "contacts")}
    arrays, structure = jax.tree.flatten((active.astype(jnp.int32), (shape, motion), memory))
    outputs = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(motion)]

    def kernel(*refs: Any) -> None:
        inputs, results = refs[: len(arrays)], refs[len(arrays) :]
        live, (own, at), memory = jax.tree.unflatten(structure, inputs)
        lane = pl.program_id(0) * WARP + jnp.arange(WARP, dtype=jnp.int32)
        load = functools.partial(jax.tree.map, lambda ref: ref[lane])
        live, own, at = load(live) != 0, load(own), load(at)
        choose = _rule(memory, lane)
        machine = Machine(_any, stacked=False)

        def one(_, motion: slim_step.Motion) -> slim_step.Motion:
            return slim_step.step(c, choose, own, motion, machine=machine, live=live)

        moved = jax.lax.fori_loop(0, steps * _any(live).astype(jnp.int32), one, at)
        for ref, value in zip(results, jax.tree.leaves(moved), strict=True):
            ref[lane] = value

    moved = pl.pallas_call(
        kernel,
        grid=(active.shape[0] // WARP,),
        out_shape=outputs,
        interpret=interpret,
        **({} if interpret else {"compiler_params": _one_warp()}),
    )(*arrays)
    return jax.tree.unflatten(jax.tree.structure(motion), moved)


def _one_warp() -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=1, num_stages=1)


def _any(live: Bool[Array, " W"]) -> Bool[Array, ""]:
    return jnp.max(live.astype(jnp.int32)) > 0


def _rule(memory: dict[str, Any], lane: Int[Array, " W"]) -> Choose:
    choose = _polygon_corners if "start" in memory else _skin_points
    both = (CONTACTS, WARP)
    owner = jnp.broadcast_to(lane[None], both)
    order = jax.lax.broadcasted_iota(jnp.int32, both, 0)

    def rule(up: Vector, height: Scalar):
        index, valid = choose(memory, lane, owner, order, up, height)
        points = memory["points"]
        return (points[0, index, owner], points[1, index, owner], points[2, index, owner]), valid

    return rule


def _scan(memory, lane, start, look):
    """`look(values, point, index)` over all support points, from the first to the last."""
    points = memory["points"]
    count = points.shape[1]

    def some(turn, values):
        for k in range(_UNROLLED):
            index = turn * _UNROLLED + k
            point = points[0, index, lane], points[1, index, lane], points[2, index, lane]
            values = look(values, point, index)
        return values

    assert count % _UNROLLED == 0, "points of no bucket"
    return jax.lax.fori_loop(0, count // _UNROLLED, some, start)


def _lowest(memory, lane, up: Vector, height: Scalar) -> tuple[Scalar, Int[Array, " W"]]:
    """The least height over the ground, and the first point that has it."""

    def look(best, point, index):
        value = vec.dot(point, up) + height
        lower = value < best[0]
        return jnp.where(lower, value, best[0]), jnp.where(lower, index, best[1])

    start = jnp.full(lane.shape, jnp.inf, height.dtype), jnp.zeros(lane.shape, jnp.int32)
    return _scan(memory, lane, start, look)


def _polygon_corners(memory, lane, owner, order, up: Vector, height: Scalar):
    """`contact.polygon_rule`: indices (C, W) of points, and which are contacts."""
    _, deepest = _lowest(memory, lane, up, height)
    first, count = memory["start"][lane, deepest], memory["count"][lane, deepest]

    def look(carry):
        turn, best, entry = carry
        here = turn < count
        at = first + jnp.where(here, turn, 0)
        normal = tuple(memory["normals"][lane, at, axis] for axis in range(3))
        downward = -vec.dot(normal, up)
        better = here & (downward > best)
        return turn + 1, jnp.where(better, downward, best), jnp.where(better, at, entry)

    start = 0, jnp.full(lane.shape, -jnp.inf, height.dtype), first
    _, _, entry = jax.lax.while_loop(lambda carry: _any(carry[0] < count), look, start)
    index = memory["contacts"][owner, jnp.broadcast_to(entry[None], owner.shape), order]
    distinct = order >= 0
    for k in range(CONTACTS - 1):
        earlier = jnp.where(order == k, index, 0).sum(axis=0)
        distinct &= (order <= k) | (index != earlier[None])
    return index, distinct


def _skin_points(memory, lane, owner, order, up: Vector, height: Scalar):
    """`contact.skin_rule`, likewise; three passes over the points."""
    del owner
    lowest, first = _lowest(memory, lane, up, height)
    near = jnp.minimum(lowest + memory["skin"][lane], 0.0)
    zero = jnp.zeros(lane.shape, jnp.int32)
    least = jnp.full(lane.shape, -jnp.inf, height.dtype)

    def at(index) -> Vector:
        points = memory["points"]
        return points[0, index, lane], points[1, index, lane], points[2, index, lane]

    a = at(first)

    def allowed(point):
        value = vec.dot(point, up) + height
        return (value < near) | (value <= lowest)

    def further(best, point, index):
        from_a = vec.sub(point, a)
        value = vec.dot(from_a, from_a)
        better = allowed(point) & (value > best[0])
        return jnp.where(better, value, best[0]), jnp.where(better, index, best[1])

    _, second = _scan(memory, lane, (least, zero), further)
    b = at(second)
    across = vec.cross(up, vec.sub(b, a))

    def beside(best, point, index):
        value = vec.dot(vec.sub(point, a), across)
        here = allowed(point)
        left, right = here & (value > best[0]), here & (-value > best[2])
        return (
            jnp.where(left, value, best[0]),
            jnp.where(left, index, best[1]),
            jnp.where(right, -value, best[2]),
            jnp.where(right, index, best[3]),
        )

    left, third, right, fourth = _scan(memory, lane, (least, zero, least, zero), beside)
    new_second = second != first
    index, valid = jnp.zeros(order.shape, jnp.int32), order < 0
    for k, (chosen, is_contact) in enumerate(
        (
            (first, first >= 0),
            (second, new_second),
            (third, new_second & (third != second) & (left > 0)),
            (fourth, new_second & (fourth != second) & (right > 0)),
        )
    ):
        index = jnp.where(order == k, chosen[None], index)
        valid |= (order == k) & is_contact[None]
    return index, valid
