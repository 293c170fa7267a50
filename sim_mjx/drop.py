"""The drop: any number of different bodies through a fixed number of simulation slots.

A pool is S slots of one shape bucket. One compiled program refills finished slots, advances all of
them to the next check and tests which are quiet; shapes never change, so a bucket is traced once
however many objects pass. On a CPU each core drives its own pool, because one pool does not
saturate two cores; on an accelerator there is one large pool.

Legend: S slots, B bodies, K support points.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sim_mjx import slim, world
from sim_mjx.bodies import RigidBody
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest

# Which code makes a step: `mjx.step`, or the same equations written for one body (sim_mjx.slim).
Step = Literal["stock", "slim"]

# Nearly the throughput of four times as many, and a tail of rolling objects costs a quarter.
CPU_SLOTS: dict[Step, int] = {"stock": 16, "slim": 32}
ACCELERATOR_SLOTS = 8192

_log = logging.getLogger(__name__)

Progress = Callable[[int], None]


class Pool(NamedTuple):
    """Everything that lives in the slots."""

    body: world.Body
    state: world.State
    steps: Int[Array, " S"]
    quiet: Int[Array, " S"]  # quiet checks in a row


class Outcome(NamedTuple):
    """What the host needs to know of each slot after a check."""

    pose: Float[Array, "S 7"]
    steps: Int[Array, " S"]
    at_rest: Bool[Array, " S"]
    finished: Bool[Array, " S"]


def drop(
    bodies: RigidBody,
    protocol: Protocol,
    *,
    reasons: Sequence[str | None] | None = None,
    slots: int | None = None,
    progress: Progress | None = None,
    step: Step = "stock",
) -> Rest:
    """Drops every body and says how it ended.

    Args:
        bodies: one shape bucket, any number of objects.
        protocol: what is simulated.
        reasons: per object None, or why it is invalid already and must not be simulated.
        slots: objects simulated side by side in a pool; a shape of the program.
        progress: called with the number of objects that have just finished.
        step: `stock` is `mjx.step` itself, `slim` its equations without what is zero here: equal
            but for rounding, and several times as fast.

    Returns:
        One entry an object, in order. The result of an object depends on the others of the batch at
        most in its last bits, through the slot it gets; the same call gives the same result.

    Raises:
        ValueError: if `reasons` is not one entry an object, or `step` is not a known one.
    """
    if step not in get_args(Step):
        raise ValueError(f"drop: step {step!r} is not one of {', '.join(get_args(Step))}")
    why = known_reasons(bodies, reasons)
    accelerator = jax.default_backend() != "cpu"
    slots = slots or (ACCELERATOR_SLOTS if accelerator else CPU_SLOTS[step])
    run = _Run(world.simulation_body(bodies, protocol), why, protocol, slots, progress, step)
    waiting = len(run.queue)
    pools = 1 if accelerator else min(cores(), -(-waiting // slots))
    if waiting:
        run.compile()
        # Dealt out beforehand, not on demand: which slot a body gets, and with it the last bits of
        # its result, must not depend on which thread is faster.
        queues = [run.queue[pool::pools] for pool in range(pools)]
        with concurrent.futures.ThreadPoolExecutor(pools) as threads:
            try:
                for done in [threads.submit(run.drive, queue) for queue in queues]:
                    done.result()
            finally:
                run.stop.set()  # after Ctrl-C or an error in one pool the others end too
    return Rest.from_states(run.pose[:, :3], run.pose[:, 3:], run.steps, run.at_rest, why)


def advance(
    protocol: Protocol, step: Step, pool: Pool, fresh: world.Body, refill: Bool[Array, " S"]
) -> tuple[Pool, Outcome]:
    """Puts fresh bodies where `refill` says, then simulates up to the next check."""

    def choose(new, old):
        return jnp.where(refill.reshape(refill.shape + (1,) * (new.ndim - 1)), new, old)

    body = jax.tree.map(choose, fresh, pool.body)
    state = jax.tree.map(choose, world.initial_state(fresh), pool.state)
    steps, quiet = jnp.where(refill, 0, pool.steps), jnp.where(refill, 0, pool.quiet)

    simulate = world.simulate if step == "stock" else slim.simulate
    state = simulate(protocol, body, state, protocol.check_steps)

    steps = steps + protocol.check_steps
    speed = jnp.abs(state.qvel).max(axis=-1)
    # An object balanced on a point or an edge is slow at first; it is not at rest.
    still = (speed < protocol.quiet_speed) & jax.vmap(world.has_footing)(body, state)
    quiet = jnp.where(still, quiet + 1, 0)
    at_rest = quiet >= protocol.quiet_checks
    minimum = round(protocol.minimum_time / protocol.timestep)
    finished = (steps >= protocol.steps) | ~jnp.isfinite(speed)
    if protocol.early_stop:
        finished |= at_rest & (steps >= minimum)
    return Pool(body, state, steps, quiet), Outcome(state.qpos, steps, at_rest, finished)


@functools.lru_cache(maxsize=64)
def _program(protocol: Protocol, step: Step) -> Callable:
    return jax.jit(functools.partial(advance, protocol, step), donate_argnums=0)


_compiled: dict = {}
# Halves the compile time of the stock step on a CPU, which runs as fast; the slim step would take
# up to twice as long.
_CPU_OPTIONS: dict[Step, dict[str, bool | str]] = {
    "stock": {"xla_cpu_use_fusion_emitters": False},
    "slim": {},
}


def _compile(lowered: jax.stages.Lowered, step: Step) -> jax.stages.Compiled:
    if jax.default_backend() != "cpu":
        return lowered.compile()
    try:
        return lowered.compile(_CPU_OPTIONS[step])
    except jax.errors.JaxRuntimeError as error:  # a release of XLA without the option
        _log.info("compiling without %s: %s", _CPU_OPTIONS[step], error)
        return lowered.compile()


def known_reasons(bodies: RigidBody, reasons: Sequence[str | None] | None) -> list[str | None]:
    """One entry a body: None, or why it is invalid before anything is simulated.

    Raises:
        ValueError: if `reasons` is given and not one entry a body.
    """
    if reasons is None:
        return [None] * len(bodies)
    if len(reasons) != len(bodies):
        raise ValueError(f"drop: {len(reasons)} reasons for {len(bodies)} bodies")
    return list(reasons)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Run:
    """One call of `drop`: the queue, the results, and the loop that a pool's thread runs."""

    def __init__(self, body, reasons, protocol, slots, progress, step):
        self.step: Step = step
        self.body, self.protocol, self.slots, self.progress = body, protocol, slots, progress
        count = len(reasons)
        self.queue = [i for i in range(count) if reasons[i] is None]
        self.pose = np.tile(np.array([0, 0, 0, 1, 0, 0, 0], np.float32), (count, 1))
        self.steps = np.zeros(count, np.int64)
        self.at_rest = np.zeros(count, bool)
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def compile(self) -> None:
        """Builds the program before threads start, so that it is traced once."""
        fresh = self._packet(np.zeros(self.slots, np.int64))
        pool, refill = self._empty(fresh), np.zeros(self.slots, bool)
        shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), (fresh, refill))
        structure = (jax.tree.structure(shapes), tuple(jax.tree.leaves(shapes)))
        key = (self.protocol, self.step, jax.default_backend(), structure)
        if key not in _compiled:
            lowered = _program(self.protocol, self.step).lower(pool, fresh, refill)
            _compiled[key] = _compile(lowered, self.step)
        self.advance = _compiled[key]

    def drive(self, queue: list[int]) -> None:
        """Runs one pool until the queue is empty and its slots are done."""
        slots, waiting = self.slots, iter(queue)
        index = np.zeros(slots, np.int64)
        active, refill = np.zeros(slots, bool), np.ones(slots, bool)
        pool: Pool | None = None
        fresh: Any = None
        while not self.stop.is_set():
            if refill.any():
                free = np.flatnonzero(refill)
                bodies = list(itertools.islice(waiting, len(free)))
                free = free[: len(bodies)]
                index[free], active[free] = bodies, True
                refill = np.isin(np.arange(slots), free)
                if bodies or fresh is None:
                    fresh = jax.device_put(self._packet(index))
            if not active.any():
                return
            pool = self._empty(fresh) if pool is None else pool
            pool, outcome = self.advance(pool, fresh, refill)
            refill = self._record(index, active, outcome)

    def _record(self, index, active, outcome: Outcome) -> Bool[np.ndarray, " S"]:
        done = active & np.asarray(outcome.finished)
        if done.any():
            bodies = index[done]
            self.pose[bodies] = np.asarray(outcome.pose)[done]
            self.steps[bodies] = np.asarray(outcome.steps)[done]
            self.at_rest[bodies] = np.asarray(outcome.at_rest)[done]
            active &= ~done
            if self.progress is not None:
                with self._lock:
                    self.progress(int(done.sum()))
        return ~active

    def _packet(self, index) -> world.Body:
        return jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[index]), self.body)

    def _empty(self, fresh: world.Body) -> Pool:
        fresh = jax.tree.map(jnp.array, fresh)
        count = jnp.zeros(self.slots, jnp.int32)
        return Pool(fresh, world.initial_state(fresh), count, count + 0)
