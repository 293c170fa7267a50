"""The slots: what of a drop lives on a device, and the three programs that work on it.

Shapes never change: a bucket is traced once a device, however many bodies pass.

Legend: S slots, R rows of a packet, K support points.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Bool, Float, Int

from sim_mjx import settling, slim, world
from sim_mjx.protocol import Protocol
from sim_mjx.settling import Settling

# Which code makes a step: `mjx.step`, or the same equations written for one body (sim_mjx.slim).
Step = Literal["stock", "slim"]

Device = Any  # a jax.Device, which type checkers take for a variable

_log = logging.getLogger(__name__)


class Pool(NamedTuple):
    """Everything that lives in the slots."""

    active: Bool[Array, " S"]  # someone waits for this body
    body: world.Body
    state: world.State
    steps: Int[Array, " S"]
    settling: Settling


class Outcome(NamedTuple):
    """What the host needs to know of each slot after a check."""

    pose: Float[Array, "S 7"]
    steps: Int[Array, " S"]
    at_rest: Bool[Array, " S"]
    finished: Bool[Array, " S"]  # just now: the slot is free from here on


class Programs(NamedTuple):
    """The compiled programs of one shape, and how to bring a packet to their devices.

    Which slots are free is known on the device, so that the host need not wait for one check to
    order the next.

    Attributes:
        empty: packet -> pool whose slots all hold the packet's first row.
        insert: pool, packet, ends -> pool, and of each row the slot that it got, or -1; `ends` (2,)
            are where the bodies begin that have no slot yet, and where they end.
        advance: pool -> pool and outcome after the steps up to the next check.
        upload: a packet from the host.
    """

    empty: Callable[[world.Body], Pool]
    insert: Callable[[Pool, world.Body, Any], tuple[Pool, Int[Array, " R"]]]
    advance: Callable[[Pool], tuple[Pool, Outcome]]
    upload: Callable[[Any], Any]


def empty(skin: float, slots: int, rows: world.Body) -> Pool:
    """A pool of S copies of the first row, which no one waits for; `skin` as in `insert`."""
    first = jax.tree.map(lambda leaf: leaf[:1], rows)
    rows = jax.vmap(functools.partial(world.placed, skin))(first)

    def repeated(leaf):
        return jnp.broadcast_to(leaf, (slots, *leaf.shape[1:]))

    body = jax.tree.map(repeated, rows)
    count = jnp.zeros(slots, jnp.int32)
    settled = settling.begin((slots,), jnp)
    return Pool(count > 0, body, world.initial_state(body), count, settled)


def insert(
    skin: float, pool: Pool, rows: world.Body, ends: Int[Array, " 2"]
) -> tuple[Pool, Int[Array, " R"]]:
    """Starts the rows between the ends in free slots, as many as there are.

    Args:
        skin: depth of the contact skin in object sizes.
        pool: before.
        rows: of a packet; where they start is not looked at.
        ends: the first row without a slot, and the first that is no body.
    """
    (first, count), rows = ends, jax.vmap(functools.partial(world.placed, skin))(rows)
    size, row = pool.steps.shape[0], jnp.arange(rows.mass.shape[0])
    (free,) = jnp.nonzero(~pool.active, size=len(row), fill_value=size)
    wanted = (row >= first) & (row < count)
    slot = jnp.where(wanted, free[jnp.clip(row - first, 0, len(row) - 1)], size)

    def put(old, new):
        return old.at[slot].set(new, mode="drop")

    started = Pool(
        active=put(pool.active, True),
        body=jax.tree.map(put, pool.body, rows),
        state=jax.tree.map(put, pool.state, world.initial_state(rows)),
        steps=put(pool.steps, 0),
        settling=jax.tree.map(put, pool.settling, settling.begin((), jnp)),
    )
    return started, jnp.where(slot < size, slot, -1)


def advance(
    protocol: Protocol, step: Step, pool: Pool, *, kernel: bool = False
) -> tuple[Pool, Outcome]:
    """Simulates every slot up to the next check and tests which have finished.

    Args:
        protocol: what is simulated.
        step: which code makes a step.
        pool: before.
        kernel: whether the slim step is a kernel of its own.
    """
    body, before, count = pool.body, pool.state, protocol.check_steps
    if kernel:
        state, footing = slim.simulate_in_kernel(protocol, body, before, count, pool.active)
    else:
        if step == "slim":
            state = slim.simulate(protocol, body, before, count, pool.active)
        else:
            state = world.simulate(protocol, body, before, count)
        footing = jax.vmap(world.has_footing)(body, state)

    steps = pool.steps + protocol.check_steps
    speed = jnp.abs(state.qvel).max(axis=-1)
    checked = settling.check(pool.settling, speed, footing, protocol, jnp)
    at_rest = settling.at_rest(checked, protocol)
    minimum = round(protocol.minimum_time / protocol.timestep)
    finished = (steps >= protocol.steps) | ~jnp.isfinite(speed)
    if protocol.early_stop:
        finished |= at_rest & (steps >= minimum)
    finished &= pool.active
    after = Pool(pool.active & ~finished, body, state, steps, checked)
    return after, Outcome(state.qpos, steps, at_rest, finished)


def programs(
    protocol: Protocol, step: Step, packet: world.Body, slots: int, device: Device
) -> Programs:
    """The programs for packets of this shape, compiled once a process.

    Args:
        protocol: what is simulated.
        step: which code makes a step.
        packet: any R rows of numpy arrays.
        slots: of the pool.
        device: where it lives.
    """
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), packet)
    structure = (jax.tree.structure(shapes), tuple(jax.tree.leaves(shapes)))
    key = (protocol, step, device, slots, structure)
    with _guard:
        building = _building.setdefault(key, threading.Lock())
    with building:  # the threads that drive pools of one shape wait for the first of them
        if key not in _compiled:
            _compiled[key] = _build(protocol, step, packet, slots, device)
        return _compiled[key]


_compiled: dict[Any, Programs] = {}
_building: dict[Any, threading.Lock] = {}
_guard, _lowering = threading.Lock(), threading.Lock()


def _build(protocol, step, packet, slots, device) -> Programs:
    here = SingleDeviceSharding(device)

    def shaped(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

    rows = jax.tree.map(shaped, packet)
    ends = jax.ShapeDtypeStruct((2,), np.int32, sharding=here)
    make = jax.jit(functools.partial(empty, protocol.skin, slots), out_shardings=here)
    fill = jax.jit(functools.partial(insert, protocol.skin), donate_argnums=0)
    pool = jax.tree.map(shaped, make.eval_shape(rows))

    def run(kernel: bool) -> jax.stages.Compiled:
        program = jax.jit(
            functools.partial(advance, protocol, step, kernel=kernel), donate_argnums=0
        )
        with _without_a_word() if kernel else contextlib.nullcontext():
            lowered = program.lower(pool)
        return _compile(lowered, step, device.platform)

    return Programs(
        empty=make.lower(rows).compile(),
        insert=fill.lower(pool, rows, ends).compile(),
        advance=_fastest(run, step == "slim" and slim.has_kernel(device)),
        upload=functools.partial(jax.device_put, device=device),
    )


@contextlib.contextmanager
def _without_a_word() -> Iterator[None]:
    """Pallas by way of Triton: JAX says that it will go."""
    with _lowering, warnings.catch_warnings():  # filters belong to all threads
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _fastest(run: Callable[[bool], jax.stages.Compiled], kernel: bool) -> jax.stages.Compiled:
    """The program with the kernel, or without it where it cannot be compiled."""
    if kernel:
        try:
            return run(True)
        except Exception as error:  # noqa: BLE001  of any layer of the compiler
            said = (str(error).splitlines() or [""])[0][:300]
            _log.warning("simulating without the kernel: %s: %s", type(error).__name__, said)
    return run(False)


# Halves the compile time of the stock step on a CPU, which runs as fast; the slim step would take
# up to twice as long.
_CPU_OPTIONS: dict[Step, dict[str, bool | str]] = {
    "stock": {"xla_cpu_use_fusion_emitters": False},
    "slim": {},
}


def _compile(lowered: jax.stages.Lowered, step: Step, platform: str) -> jax.stages.Compiled:
    if platform != "cpu":
        return lowered.compile()
    try:
        return lowered.compile(_CPU_OPTIONS[step])
    except jax.errors.JaxRuntimeError as error:  # a release of XLA without the option
        _log.info("compiling without %s: %s", _CPU_OPTIONS[step], error)
        return lowered.compile()
