"""All steps up to a check in one kernel of an accelerator: a body a thread, its state in registers.

The arithmetic is that of `slim.step`; only what reads memory, the contact rule, is written anew.
A warp of 32 bodies ends its solver loops when none of its own needs another round, and bodies for
which no one waits cost nothing once they fill a warp. A body's numbers depend on no neighbour.

Legend: S bodies, K support points, V entries of the polygon table, W bodies of a warp, C contacts.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    leaves, structure = jax.tree.flatten((shape, motion, body.skin))
    moving = len(jax.tree.leaves(motion))
    memory = {"numbers": _packed(leaves)}
    memory["points"] = _packed([body.points[..., axis] for axis in range(3)], axis=1)
    memory["active"] = active.astype(jnp.int32)
    if body.polygons is not None:
        table = body.polygons
        memory |= {name: getattr(table, name) for name in ("start", "count", "normals", "contacts")}
    names = list(memory)

    def kernel(*refs: Any) -> None:
        here = _Memory(dict(zip(names, refs, strict=False)), pl.program_id(0) * WARP)
        live = here.refs["active"][here.lane] != 0
        parts = [part for k in range(-(-len(leaves) // 4)) for part in here.numbers(k)]
        own, at, skin = jax.tree.unflatten(structure, parts[: len(leaves)])
        choose = _rule(here, skin)
        machine = Machine(_any, stacked=False)

        def one(_, motion: slim_step.Motion) -> slim_step.Motion:
            return slim_step.step(c, choose, own, motion, machine=machine, live=live)

        moved = jax.lax.fori_loop(0, steps * _any(live).astype(jnp.int32), one, at)
        here.put(refs[-1], jax.tree.leaves(moved))

    out = jax.ShapeDtypeStruct((-(-moving // 4), *memory["numbers"].shape[1:]), body.mass.dtype)
    moved = pl.pallas_call(
        kernel,
        grid=(active.shape[0] // WARP,),
        out_shape=out,
        interpret=interpret,
        **({} if interpret else {"compiler_params": _one_warp()}),
    )(*memory.values())
    numbers = [moved[k // 4, :, k % 4] for k in range(moving)]
    return jax.tree.unflatten(jax.tree.structure(motion), numbers)


def _packed(leaves: Sequence[Array], axis: int = 0) -> Array:
    """Numbers of each body, four side by side as a thread reads them at once: (N, S, 4).

    Triton's compiler takes a fixed time for every access to memory, more than for all the rest.
    """
    zero = jnp.zeros_like(leaves[0])
    leaves = [*leaves, *[zero] * (-len(leaves) % 4)]
    if axis:  # N is an axis of the leaves
        return jnp.stack([leaf.swapaxes(0, axis) for leaf in leaves], axis=-1)
    fours = [jnp.stack(leaves[k : k + 4], axis=-1) for k in range(0, len(leaves), 4)]
    return jnp.stack(fours)


def _one_warp() -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=1, num_stages=1)


def _any(live: Bool[Array, " W"]) -> Bool[Array, ""]:
    return jnp.max(live.astype(jnp.int32)) > 0


class _Memory:
    """What a warp reads and writes.

    A thread reads numbers that lie side by side as a row of (W, 4), so that each access is one of
    16 bytes; arrays over contacts (C, W) never meet memory, and stay in registers.

    Args:
        refs: arrays by name.
        begin: the warp's first body.

    Attributes:
        mine: the warp's bodies.
        lane: each thread's body.
    """

    def __init__(self, refs: dict[str, Any], begin: Int[Array, ""]):
        from jax.experimental import pallas as pl

        self.refs, self.mine = refs, pl.ds(begin, WARP)
        self.lane = begin + jnp.arange(WARP, dtype=jnp.int32)
        self._place = jax.lax.broadcasted_iota(jnp.int32, (WARP, 4), 1)
        self._contact = jax.lax.broadcasted_iota(jnp.int32, (CONTACTS, WARP), 0)

    def point(self, index: Int[Array, ""] | Int[Array, " W"]) -> Vector:
        """The same point of every body, or one of each."""
        if index.ndim:
            x, y, z, _ = self._four("points", self._wide(index), self._wide(self.lane), self._place)
        else:
            x, y, z, _ = self._four("points", index, self.mine, slice(None))
        return x, y, z

    def numbers(self, row: int) -> list[Scalar]:
        """Four numbers of each body."""
        return self._four("numbers", row, self.mine, slice(None))

    def corners(self, entry: Int[Array, " W"]) -> list[Int[Array, " W"]]:
        """The contacts of an entry of the polygon table."""
        return self._four("contacts", self._wide(self.lane), self._wide(entry), self._place)

    def put(self, ref: Any, values: Sequence[Scalar]) -> None:
        """Writes numbers as a packed array."""
        for row in range(ref.shape[0]):
            tile = jnp.zeros(self._place.shape, ref.dtype)
            for k, value in enumerate(values[4 * row : 4 * row + 4]):
                tile = jnp.where(self._place == k, value[:, None], tile)
            ref[row, self.mine, :] = tile

    def over_contacts(self, values: Sequence[Any]) -> Any:
        """One array (C, W) of a value for each contact."""
        array = jnp.broadcast_to(values[0][None], self._contact.shape)
        for k, value in enumerate(values[1:], 1):
            array = jnp.where(self._contact == k, value[None], array)
        return array

    def _four(self, name: str, *index: Any) -> list[Any]:
        values = self.refs[name][index]
        if not jnp.issubdtype(values.dtype, jnp.floating):
            values = values.astype(jnp.int32)
        # Sums of integers, of which all but one are zero and go at compile time.
        whole = {4: jnp.int32, 8: jnp.int64}[values.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(values, whole)
        parts = [jnp.where(self._place == k, bits, 0).sum(axis=1, dtype=whole) for k in range(4)]
        return [jax.lax.bitcast_convert_type(part, values.dtype) for part in parts]

    def _wide(self, values: Int[Array, " W"]) -> Int[Array, "W 4"]:
        return jnp.broadcast_to(values[:, None], self._place.shape)


def _rule(here: _Memory, skin: Scalar) -> Choose:
    choose = _polygon_corners if "start" in here.refs else _skin_points

    def rule(up: Vector, height: Scalar):
        chosen, valid = choose(here, skin, up, height)
        corners = zip(*map(here.point, chosen), strict=True)
        x, y, z = map(here.over_contacts, corners)
        # Not an array of truth values, which take a register each.
        return (x, y, z), here.over_contacts([v.astype(jnp.int32) for v in valid]) > 0

    return rule


def _scan(here: _Memory, start, look):
    """`look(values, point, index)` over all support points, from the first to the last."""
    count = here.refs["points"].shape[0]

    def some(turn, values):
        for k in range(_UNROLLED):
            index = turn * _UNROLLED + k
            values = look(values, here.point(index), index)
        return values

    assert count % _UNROLLED == 0, "points of no bucket"
    return jax.lax.fori_loop(0, count // _UNROLLED, some, start)


def _lowest(here: _Memory, up: Vector, height: Scalar) -> tuple[Scalar, Int[Array, " W"]]:
    """The least height over the ground, and the first point that has it."""

    def look(best, point, index):
        value = vec.dot(point, up) + height
        lower = value < best[0]
        return jnp.where(lower, value, best[0]), jnp.where(lower, index, best[1])

    start = jnp.full(height.shape, jnp.inf, height.dtype), jnp.zeros(height.shape, jnp.int32)
    return _scan(here, start, look)


def _polygon_corners(here: _Memory, skin: Scalar, up: Vector, height: Scalar):
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
    _, _, entry = jax.lax.while_loop(lambda carry: _any(carry[0] < count), look, start)
    index = here.corners(entry)
    distinct = [index[0] >= 0]
    for k in range(1, CONTACTS):
        new = index[k] != index[0]
        for earlier in index[1:k]:
            new &= index[k] != earlier
        distinct.append(new)
    return index, distinct


def _skin_points(here: _Memory, skin: Scalar, up: Vector, height: Scalar):
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

    _, second = _scan(here, (least, zero), further)
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

    left, third, right, fourth = _scan(here, (least, zero, least, zero), beside)
    new_second = second != first
    valid = [
        first >= 0,
        new_second,
        new_second & (third != second) & (left > 0),
        new_second & (fourth != second) & (right > 0),
    ]
    return [first, second, third, fourth], valid
