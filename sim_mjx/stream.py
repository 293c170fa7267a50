"""Drops without end: bodies are put in, results come out, and the slots stay full in between.

What is put in shares slots with what came before, whatever its shape bucket, so the few objects
that roll for ten seconds never hold up the rest. On a CPU each core drives a pool of every bucket,
because one pool does not saturate two cores; so does a thread for each accelerator, which works on
one turn while the thread records the one before and another thread sends bodies for the next. Of
several buckets the fullest pool goes first, since a step costs the same however few slots are in
use.

With the slim step a body's result does not depend on its slot or its neighbours, to the bit: what
is put in together, and when, changes nothing. The stock step gives last bits that do.

Legend: S slots, B bodies of a batch.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
import numpy as np

from sim_mjx import pool, sizes, world
from sim_mjx.bodies import RigidBody
from sim_mjx.lane import Batch, Lane, Waiting, at_once
from sim_mjx.pool import Device, Step
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest, known_reasons

# Bytes of bodies that wait to be sent to a device; `put` waits for room.
ROOM_BYTES = 2**31
# A pool that is nearly empty still gets one turn in so many, weighed by what turns cost.
PATIENCE = 4

Progress = Callable[[int], None]


@dataclasses.dataclass
class _Shape:
    """One shape bucket: how it is simulated, and what waits; a queue a thread, or one for all."""

    slots: int
    rows: int
    cost: int  # of one turn, in points
    packet: world.Body  # one packet's worth, to compile for
    waiting: list[Waiting]


@dataclasses.dataclass(eq=False)
class _Driver:
    """What one thread works on."""

    number: int
    lanes: dict[Any, Lane] = dataclasses.field(default_factory=dict)
    ordered: collections.deque[Lane] = dataclasses.field(default_factory=collections.deque)
    passed: dict[Any, int] = dataclasses.field(default_factory=collections.Counter)


class DropStream:
    """A pool of slots that is fed continuously.

    Results come in the order in which batches end. Threads run only while there is something to
    do. Leaving the `with` block by an exception abandons what has not ended.

    Example:
        with DropStream(protocol) as stream:
            for name, bodies in batches:
                stream.put(bodies, tag=name)
                save(stream.ready())
            stream.close()
            save(stream.results())

    Args:
        protocol: what is simulated.
        step: `slim` or `stock`, see `sim_mjx.drop`.
        slots: on each device (or CPU core); a shape of the program.
        devices: that share the work, by default all local ones of the default backend.
        threads: that each drive their own pools; by default one a core on CPUs, else one a device.
        progress: called with the number of objects that have just finished, from any thread.
        room: bytes of bodies that are not on their way to a device.

    Raises:
        ValueError: `step` is not a known one.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        step: Step = "slim",
        slots: int | None = None,
        devices: Sequence[Device] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        room: int = ROOM_BYTES,
    ):
        if step not in get_args(Step):
            raise ValueError(f"drop: step {step!r} is not one of {', '.join(get_args(Step))}")
        everything = devices is None
        self._devices = jax.local_devices() if devices is None else list(devices)
        on_cpu = self._devices[0].platform == "cpu"
        if everything and on_cpu:
            self._devices = self._devices[:1]
        usual = sizes.cores() if everything and on_cpu else len(self._devices)
        self._threads = max(threads or usual, len(self._devices))
        # Packets that wait on a device, and turns that are ordered before one is recorded.
        self._ahead, self._depth = (0, 1) if on_cpu else (sizes.PACKETS, sizes.DEPTH)
        self._protocol, self._slots = protocol, slots
        self._step: Step = step
        self._progress, self._room = progress, room
        # Each thread gets its share when bodies are put in, where the first to come would leave
        # other devices idle, and with the stock step, whose last bits depend on the slot: that must
        # not depend on which thread is faster.
        self._dealt = step == "stock" or len(self._devices) > 1
        self._lock, self._telling = threading.Condition(), threading.Lock()
        self._shapes: dict[Any, _Shape] = {}
        self._idle = [_Driver(number) for number in range(self._threads)]
        self._executor = concurrent.futures.ThreadPoolExecutor(self._threads, "drop")
        # An accelerator has one thread: the others of its programs are compiled beside the first.
        self._compiler = None if on_cpu else concurrent.futures.ThreadPoolExecutor(16, "compile")
        # The thread of an accelerator is at its turns while bodies are put together and copied.
        count = len(self._devices)
        self._sender = None if on_cpu else concurrent.futures.ThreadPoolExecutor(count, "send")
        self._done: collections.deque[Batch] = collections.deque()
        # Batches that have not ended, and bytes of bodies that have not been sent.
        self._open, self._held = 0, 0
        self._closed, self._stopped = False, False
        self._error: BaseException | None = None

    def __enter__(self) -> DropStream:
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._lock:
            self._closed, self._stopped = True, self._stopped or kind is not None
            self._lock.notify_all()
        self._executor.shutdown()
        for executor in (self._sender, self._compiler):
            if executor is not None:
                executor.shutdown(cancel_futures=True)
        if self._error is not None and error is None:
            raise self._error

    def put(
        self, bodies: RigidBody, reasons: Sequence[str | None] | None = None, tag: Any = None
    ) -> None:
        """Adds bodies of one shape bucket; waits while too many wait.

        Args:
            bodies: any number of objects.
            reasons: per object None, or why it is invalid already and must not be simulated.
            tag: comes back with their result.

        Raises:
            ValueError: `reasons` is not one entry an object, or the stream is closed.
        """
        why = known_reasons(bodies, reasons)
        body = world.unplaced_body(bodies, self._protocol)
        batch = Batch.of(body, why, tag)
        queue = np.flatnonzero([reason is None for reason in why])
        with self._lock:
            if self._closed:
                raise ValueError("put: the stream is closed")
            shape = self._shape(body)
            while self._full(batch, shape) and not self._stopped:
                self._lock.wait()
            self._raise()
            if self._closed:
                raise ValueError("put: the stream is closed")
            if not batch.left:
                self._done.append(batch)
                self._lock.notify_all()
                return
            self._open, self._held = self._open + 1, self._held + batch.size
            wanted = min(self._threads, -(-len(queue) // shape.slots))
            wanted = max(wanted, min(len(self._devices), len(queue)))
            # A packet of neighbours stays together, since it is sent from where it is; not all of
            # them, since neighbours may be alike and slow.
            packets = max(wanted, -(-len(queue) // shape.rows))
            for number, rows in enumerate(np.array_split(queue, packets if self._dealt else 1)):
                shape.waiting[number % wanted].add(batch, rows)
            starting = self._idle[:wanted]
            if self._dealt:
                starting = [driver for driver in self._idle if driver.number < wanted]
            for driver in starting:
                self._idle.remove(driver)
                self._executor.submit(self._drive, driver).add_done_callback(self._ended)

    def _full(self, batch: Batch, shape: _Shape) -> bool:
        waiting = sum(queue.count for other in self._shapes.values() for queue in other.waiting)
        if waiting > sizes.waiting(shape.slots * self._threads):
            return True
        return self._held > 0 and self._held + batch.size > self._room

    def close(self) -> None:
        """Nothing more will be put in; what is there runs to its end."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def ready(self) -> Iterator[tuple[Any, Rest]]:
        """What has ended and was not handed out yet; does not wait."""
        while (batch := self._next(wait=False)) is not None:
            yield batch.tag, _rest(batch)

    def results(self) -> Iterator[tuple[Any, Rest]]:
        """Waits for batches, until the stream is closed and all were handed out."""
        while (batch := self._next(wait=True)) is not None:
            yield batch.tag, _rest(batch)

    def _next(self, *, wait: bool) -> Batch | None:
        with self._lock:
            while wait and not (self._done or self._stopped or (self._closed and not self._open)):
                self._lock.wait()
            self._raise()
            return self._done.popleft() if self._done else None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
        if self._stopped:
            raise ValueError("the stream was abandoned")

    def _shape(self, body: world.Body) -> _Shape:
        key = _key(body)
        if key not in self._shapes:
            points = body.points.shape[1]
            slots = self._slots or sizes.slots(points, self._step, self._devices[0].platform)
            rows = sizes.packet_rows(slots, sum(leaf[:1].nbytes for leaf in jax.tree.leaves(body)))
            packet = jax.tree.map(lambda leaf: np.zeros((rows, *leaf.shape[1:]), leaf.dtype), body)
            waiting = [Waiting() for _ in range(self._threads if self._dealt else 1)]
            self._shapes[key] = _Shape(slots, rows, slots * points, packet, waiting)
            if self._compiler is not None:  # what fails there fails again where it is needed
                for number in range(min(self._threads, len(self._devices))):
                    self._compiler.submit(self._programs, self._shapes[key], number)
        return self._shapes[key]

    def _programs(self, shape: _Shape, number: int) -> pool.Programs:
        """Compiles, or finds what another thread has compiled."""
        device = self._devices[number % len(self._devices)]
        return pool.programs(self._protocol, self._step, shape.packet, shape.slots, device)

    def _drive(self, driver: _Driver) -> None:
        """Runs pools until nothing is left for this thread."""
        while (lane := self._choose(driver)) is not None or driver.ordered:
            if lane is not None:
                lane.advance()
                driver.ordered.append(lane)
            # While the device is at the turn ordered last, the one before is recorded.
            while len(driver.ordered) > (0 if lane is None else self._depth - 1):
                for batch, count in driver.ordered.popleft().record():
                    self._tell(batch, count)

    def _choose(self, driver: _Driver) -> Lane | None:
        """The lane for the next turn, with bodies for its free slots; None if no body waits."""
        while (key := self._fullest(driver)) is not None:
            shape, lane = self._shapes[key], driver.lanes.get(key)
            if lane is None:
                programs = self._programs(shape, driver.number)
                submit = at_once if self._sender is None else self._sender.submit
                lane = Lane(programs, shape.slots, shape.rows, submit)
                driver.lanes[key] = lane
            while lane.ready < lane.wanted or lane.packets < self._ahead:
                with self._lock:
                    parts = self._queue(driver, shape).take(lane.rows)
                    self._lock.notify_all()
                if not parts:
                    break
                lane.upload(parts)
                self._sent(parts)
            if lane.held:  # else another thread was faster
                return lane
        return None

    def _fullest(self, driver: _Driver) -> Any | None:
        """The bucket whose pool is fullest, or has been passed over for long.

        A driver that gets None, and has recorded all that it ordered, is idle from then on.
        """
        with self._lock:
            best, highest = None, 0.0
            for key, shape in self._shapes.items():
                lane = driver.lanes.get(key)
                bodies = self._queue(driver, shape).count + (0 if lane is None else lane.held)
                if not bodies:
                    driver.passed[key] = 0
                    continue
                rank = min(1.0, bodies / shape.slots)
                rank += driver.passed[key] / (PATIENCE * shape.cost)
                if rank > highest:
                    best, highest = key, rank
            if self._stopped:
                driver.ordered.clear()
                return None
            if best is None:
                if not driver.ordered:
                    self._idle.append(driver)
                return None
            for key in self._shapes:
                driver.passed[key] += self._shapes[best].cost
            driver.passed[best] = 0
            return best

    def _sent(self, parts: list[tuple[Batch, np.ndarray]]) -> None:
        with self._lock:
            for batch, rows in parts:
                batch.unsent -= len(rows)
                if not batch.unsent:
                    batch.body, self._held = None, self._held - batch.size
            self._lock.notify_all()

    def _queue(self, driver: _Driver, shape: _Shape) -> Waiting:
        return shape.waiting[driver.number if self._dealt else 0]

    def _tell(self, batch: Batch, count: int) -> None:
        if self._progress is not None:
            with self._telling:
                self._progress(count)
        with self._lock:
            batch.left -= count
            if not batch.left:
                self._open -= 1
                self._done.append(batch)
                self._lock.notify_all()

    def _ended(self, future: concurrent.futures.Future) -> None:
        if (error := future.exception()) is not None:
            with self._lock:
                self._error, self._stopped = error, True
                self._lock.notify_all()


def _key(body: world.Body) -> Any:
    leaves, structure = jax.tree.flatten(body)
    return structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)


def _rest(batch: Batch) -> Rest:
    return Rest.from_states(
        batch.pose[:, :3], batch.pose[:, 3:], batch.steps, batch.at_rest, batch.reasons
    )
