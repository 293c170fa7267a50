"""All steps up to a check in one kernel of an accelerator: a body a thread, its state in registers.

The arithmetic is that of `slim.step`; only what reads memory, the contact rule, is written anew.
A warp of 32 bodies ends its solver loops when none of its own needs another round, and bodies for
which no one waits cost nothing once they fill a warp. A body's numbers depend on no neighbour.

Legend: S bodies, K support points, V entries of the polygon table, W bodies of a warp, C contacts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from sim_mjx import world
from sim_mjx.bodies import POLYGON_ARRAYS
from sim_mjx.protocol import Protocol
from sim_mjx.slim import step as slim_step
from sim_mjx.slim import vectors as vec
from sim_mjx.slim.constants import constants
from sim_mjx.slim.loops import Machine
from sim_mjx.slim.warp import WARP, Memory, any_of
from sim_mjx.slim.warp_contacts import footing, rule_of_warp


def has_kernel(device: Any) -> bool:
    """Whether this is a device for which the kernel is written: an NVIDIA GPU."""
    return device.platform == "gpu" and "cuda" in device.client.platform_version.lower()


def simulate(
    protocol: Protocol,
    body: world.Body,
    state: world.State,
    steps: int,
    active: Bool[Array, " S"] | None = None,
    *,
    interpret: bool = False,
) -> tuple[world.State, Bool[Array, " S"]]:
    """Steps a batch of bodies: `slim.simulate` but for rounding.

    Args:
        protocol: what is simulated.
        body: S bodies.
        state: of each.
        steps: how many.
        active: bodies for which anyone waits; the states of others mean nothing afterwards.
        interpret: without an accelerator, to test.

    Returns:
        The states, and `world.has_footing` of those that are quiet.
    """
    count = body.mass.shape[0]
    if active is None:
        active = jnp.ones(count, bool)
    if count % WARP:
        body, state = jax.tree.map(_padded, (body, state))
        active = jnp.pad(active, (0, -count % WARP))
    inertial = vec.quaternion(body.inertia_quat)
    shape, motion = slim_step.shape_of(body), slim_step.enter(inertial, state)
    moved, stands = _launch(protocol, steps, body, shape, motion, active, interpret)
    after = slim_step.leave(inertial, moved), stands
    return jax.tree.map(lambda leaf: leaf[:count], after) if count % WARP else after


def _padded(leaf: Array) -> Array:
    return jnp.pad(leaf, [(0, -leaf.shape[0] % WARP)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")


def _launch(protocol: Protocol, steps: int, body, shape, motion, active, interpret: bool):
    from jax.experimental import pallas as pl  # a quarter of a second that a CPU can do without

    leaves, structure = jax.tree.flatten((shape, motion, body.skin))
    moving, numbers = len(jax.tree.leaves(motion)), constants(protocol)
    memory = {"numbers": _packed(leaves)}
    memory["points"] = _packed([body.points[..., axis] for axis in range(3)], axis=1)
    memory["active"] = active.astype(jnp.int32)
    if body.polygons is not None:
        table = body.polygons
        memory |= {name: getattr(table, name) for name in POLYGON_ARRAYS}
    names = list(memory)

    def kernel(*refs: Any) -> None:
        here = Memory(dict(zip(names, refs, strict=False)), pl.program_id(0) * WARP)
        live = here.refs["active"][here.lane] != 0
        parts = [part for k in range(-(-len(leaves) // 4)) for part in here.numbers(k)]
        own, at, skin = jax.tree.unflatten(structure, parts[: len(leaves)])
        choose = rule_of_warp(here, skin)
        machine = Machine(any_of, stacked=False)

        def one(_, motion: slim_step.Motion) -> slim_step.Motion:
            return slim_step.step(numbers, choose, own, motion, machine=machine, live=live)

        moved = jax.lax.fori_loop(0, steps * any_of(live).astype(jnp.int32), one, at)
        axes, centre = slim_step.pose(own, moved)
        # In other axes a quiet speed has components of at most sqrt(3) times the limit.
        parts = [*moved.velocity, *moved.spin]
        slow = functools.reduce(
            jnp.logical_and, [jnp.abs(x) < 2 * protocol.quiet_speed for x in parts]
        )
        stands = footing(here, skin, axes, centre, any_of(slow & live))
        here.put(refs[-1], [*jax.tree.leaves(moved), stands.astype(skin.dtype)])

    out = jax.ShapeDtypeStruct((moving // 4 + 1, *memory["numbers"].shape[1:]), body.mass.dtype)
    moved = pl.pallas_call(
        kernel,
        grid=(active.shape[0] // WARP,),
        out_shape=out,
        interpret=interpret,
        **({} if interpret else {"compiler_params": _one_warp()}),
    )(*memory.values())
    *moved, stands = [moved[k // 4, :, k % 4] for k in range(moving + 1)]
    return jax.tree.unflatten(jax.tree.structure(motion), moved), stands > 0


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
