"""The drop: any number of different bodies through a fixed number of simulation slots.

A pool is S slots of one shape bucket (see `sim_mjx.pool`). Finished slots are refilled from packets
that the host uploads while the device is busy, so that every slot keeps working. On a CPU each core
drives its own pool, because one pool does not saturate two cores; accelerators share one pool.

Legend: S slots, B bodies, R rows of a packet.
"""

from __future__ import annotations

import collections
import concurrent.futures
import os
import threading
from collections.abc import Callable, Sequence
from typing import get_args

import jax
import numpy as np

from sim_mjx import world
from sim_mjx.bodies import RigidBody
from sim_mjx.pool import Device, Outcome, Pool, Programs, Step, programs
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest

# Nearly the throughput of four times as many, and a tail of rolling objects costs a quarter.
CPU_SLOTS: dict[Step, int] = {"stock": 16, "slim": 32}
# On each device, of at most so many points in all.
ACCELERATOR_SLOTS: dict[Step, int] = {"stock": 8192, "slim": 32768}
ACCELERATOR_POINTS = 2**26
# Rows of a packet and packets that wait on an accelerator: about what finishes at a check.
PACKET_ROWS, PACKETS = 2048, 4

Progress = Callable[[int], None]


def drop(
    bodies: RigidBody,
    protocol: Protocol,
    *,
    reasons: Sequence[str | None] | None = None,
    slots: int | None = None,
    progress: Progress | None = None,
    step: Step = "stock",
    devices: Sequence[Device] | None = None,
) -> Rest:
    """Drops every body and says how it ended.

    Args:
        bodies: one shape bucket, any number of objects.
        protocol: what is simulated.
        reasons: per object None, or why it is invalid already and must not be simulated.
        slots: objects simulated side by side on a device (or CPU core); a shape of the program.
        progress: called with the number of objects that have just finished.
        step: `stock` is `mjx.step` itself, `slim` its equations without what is zero here: equal
            but for rounding, and several times as fast.
        devices: that share the work, by default all local ones of the default backend.

    Returns:
        One entry an object, in order. The result of an object depends on the others of the batch at
        most in its last bits, through the slot it gets; the same call gives the same result.

    Raises:
        ValueError: if `reasons` is not one entry an object, or `step` is not a known one.
    """
    if step not in get_args(Step):
        raise ValueError(f"drop: step {step!r} is not one of {', '.join(get_args(Step))}")
    why = known_reasons(bodies, reasons)
    queue = [i for i, reason in enumerate(why) if reason is None]
    threads = 1
    if devices is None:
        devices = jax.local_devices()
        if devices[0].platform == "cpu":
            devices = devices[:1]
            threads = cores()
    slots = slots or _default_slots(bodies, step, devices[0])
    run = _Run(bodies, len(why), protocol, slots * len(devices), progress)
    threads = min(threads, -(-len(queue) // slots))
    if queue:
        run.compile(step, devices)
        # Dealt out beforehand, not on demand: which slot a body gets, and with it the last bits of
        # its result, must not depend on which thread is faster.
        queues = [queue[thread::threads] for thread in range(threads)]
        with concurrent.futures.ThreadPoolExecutor(threads) as executor:
            try:
                for done in [executor.submit(run.drive, part) for part in queues]:
                    done.result()
            finally:
                run.stop.set()  # after Ctrl-C or an error in one pool the others end too
    return Rest.from_states(run.pose[:, :3], run.pose[:, 3:], run.steps, run.at_rest, why)


def _default_slots(bodies: RigidBody, step: Step, device: Device) -> int:
    if device.platform == "cpu":
        return CPU_SLOTS[step]
    return min(ACCELERATOR_SLOTS[step], ACCELERATOR_POINTS // bodies.points.shape[1])


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
    """One call of `drop`: the results, and the loop that a pool's thread runs."""

    programs: Programs

    def __init__(self, bodies, count, protocol, slots, progress):
        self.body = world.simulation_body(bodies, protocol)
        self.protocol, self.slots, self.progress = protocol, slots, progress
        self.rows = min(slots, PACKET_ROWS)
        self.pose = np.tile(np.array([0, 0, 0, 1, 0, 0, 0], np.float32), (count, 1))
        self.steps = np.zeros(count, np.int64)
        self.at_rest = np.zeros(count, bool)
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def compile(self, step: Step, devices: Sequence[Device]) -> None:
        """Builds the programs before threads start, so that they are traced once."""
        packet = self.packet(np.zeros(self.rows, np.int64))
        self.programs = programs(self.protocol, step, packet, self.slots, devices)

    def drive(self, queue: list[int]) -> None:
        """Runs one pool until the queue is empty and its slots are done."""
        feed = _Feed(self, queue)
        index = np.zeros(self.slots, np.int64)
        active = np.zeros(self.slots, bool)
        pool = self.programs.empty(feed.ready[0].rows)
        while not self.stop.is_set():
            pool = feed.fill(pool, index, active)
            if not active.any():
                return
            pool, outcome = self.programs.advance(pool)
            feed.prepare()  # while the device is busy
            self._record(index, active, outcome)

    def _record(self, index, active, outcome: Outcome) -> None:
        done = active & np.asarray(outcome.finished)
        if not done.any():
            return
        bodies = index[done]
        self.pose[bodies] = np.asarray(outcome.pose)[done]
        self.steps[bodies] = np.asarray(outcome.steps)[done]
        self.at_rest[bodies] = np.asarray(outcome.at_rest)[done]
        active &= ~done
        if self.progress is not None:
            with self._lock:
                self.progress(int(done.sum()))

    def packet(self, index) -> world.Body:
        """The bodies of R indices."""
        return jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[index]), self.body)


class _Packet:
    """R rows on the device, of which `bodies` wait for a slot."""

    def __init__(self, rows: world.Body, bodies: np.ndarray):
        self.rows, self.bodies, self.used = rows, bodies, 0


class _Feed:
    """Packets on their way into a pool, in the order of the queue."""

    def __init__(self, run: _Run, queue: list[int]):
        self.run, self.queue = run, np.array(queue)
        self.ready: collections.deque[_Packet] = collections.deque()
        self.prepare()

    def prepare(self) -> None:
        """Uploads packets until enough wait."""
        while len(self.queue) and len(self.ready) < PACKETS:
            bodies, self.queue = self.queue[: self.run.rows], self.queue[self.run.rows :]
            padded = np.resize(bodies, self.run.rows)
            rows = self.run.programs.upload(self.run.packet(padded))
            self.ready.append(_Packet(rows, bodies))

    def fill(self, pool: Pool, index, active) -> Pool:
        """Puts the next bodies into the free slots; notes them in `index` and `active`."""
        free = np.flatnonzero(~active)
        while len(free) and (self.ready or len(self.queue)):
            self.prepare()
            packet = self.ready[0]
            bodies = packet.bodies[packet.used :][: len(free)]
            taken, free = free[: len(bodies)], free[len(bodies) :]
            slot = np.full(self.run.rows, self.run.slots, np.int32)
            slot[packet.used :][: len(bodies)] = taken
            pool = self.run.programs.insert(pool, packet.rows, self.run.programs.upload(slot))
            index[taken], active[taken] = bodies, True
            packet.used += len(bodies)
            if packet.used == len(packet.bodies):
                self.ready.popleft()
        return pool
