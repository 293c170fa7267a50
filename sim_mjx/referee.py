"""The referee: the same drop in C MuJoCo, one object at a time, on all cores.

Same bodies, same protocol, same early stop, double precision, MuJoCo's own contact rule and its
default solver iterations: what the MJX labels are measured against, and the engine of record where
bit-stable labels matter more than speed.

Processes, not threads: of an object's few milliseconds enough are Python's that its lock, on 16
cores, would leave a sixth of the labels. They stay for the next call, to which they are of use as
they are: what is simulated comes with each object.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np

from sim_mjx import referee_one, world
from sim_mjx.bodies import RigidBody
from sim_mjx.protocol import Protocol
from sim_mjx.referee_one import DropError, End, Placed
from sim_mjx.rest import Rest, known_reasons
from sim_mjx.sizes import cores
from sim_mjx.worker import Failure, IdleWorkers
from sim_mjx.worker_pool import Limits, WorkerPool

# Until so many were asked for, objects are dropped here: starting a process takes as long as
# dropping fifty, or seven that never rest, and whoever asks about a few may not ask again.
_FEW = 25
# One at work and one before it: a third would wait behind an object that rolls to the end.
_SENT = 2
# Only against what never ends: C simulates ten seconds of a body in a twentieth of a second, and a
# protocol may well ask for a day.
_LIMITS = Limits(seconds=3600.0)
_idle = IdleWorkers()
_lock, _dropped = threading.Lock(), 0  # objects that were dropped here for being few
_log = logging.getLogger(__name__)


def drop(
    bodies: RigidBody,
    protocol: Protocol,
    *,
    reasons: Sequence[str | None] | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rest:
    """Drops every body in C MuJoCo; see `sim_mjx.drop` for arguments and result.

    What `progress` raises ends the call and the processes that were at work for it.

    Args:
        bodies: any number of objects.
        protocol: what is simulated; solver iterations and contact rule stay MuJoCo's own.
        reasons: per object None, or why it is invalid already.
        workers: processes; None takes one a core, or an object if those are fewer, and none for the
            first few objects. 0 works in this process.
        progress: called with 1 for each finished object, in order.

    Returns:
        One entry an object, in order, the same for any number of workers. What MuJoCo refuses is
        `mujoco_rejects`, what kills two processes `crashed`, what takes an hour `timeout`.

    Raises:
        WorkerError: the worker processes cannot be started.
        DropError: a worker raised something.
    """
    count, why = len(bodies), known_reasons(bodies, reasons)
    pose = np.tile(np.array([0.0, 0, 0, 1, 0, 0, 0]), (count, 1))
    steps, at_rest = np.zeros(count, np.int64), np.zeros(count, bool)
    todo = [i for i in range(count) if why[i] is None]
    if workers is None:
        workers = min(cores(), len(todo)) if _idle or not _are_few(len(todo)) else 0
    with contextlib.closing(_ends(place(bodies, protocol, todo), protocol, workers)) as ends:
        for i, end in zip(todo, ends, strict=True):
            if isinstance(end, str):
                why[i] = end
            else:
                pose[i], steps[i], at_rest[i] = end
            if progress is not None:
                progress(1)
    return Rest.from_states(pose[:, :3], pose[:, 3:], steps, at_rest, why)


def _are_few(count: int) -> bool:
    """Whether so many more are better dropped here; counts them if so."""
    global _dropped
    with _lock:
        if _dropped + count >= _FEW:
            return False
        _dropped += count
        return True


def place(
    bodies: RigidBody, protocol: Protocol, chosen: Sequence[int] | None = None
) -> Iterator[Placed]:
    """The chosen bodies, by default all, one by one at their start."""
    points, start = bodies.body_points(), world.start_position(bodies)
    depth = protocol.skin * bodies.size()
    # Not as they are: arrays of JAX would bring it into the process that reads them.
    numbers = (bodies.com, bodies.inertia, bodies.inertia_quat)
    com, inertia, turn = (np.asarray(array, np.float64) for array in numbers)
    for i in range(len(bodies)) if chosen is None else chosen:
        mass, skin = float(bodies.mass[i]), float(depth[i])
        yield Placed(points[i], mass, com[i], inertia[i], turn[i], start[i], skin)


def _ends(
    bodies: Iterator[Placed], protocol: Protocol, workers: int
) -> Generator[End | str, None, None]:
    """How each body ended, or why it was not dropped, in order."""
    items = ((body, protocol) for body in bodies)
    if workers == 0:
        yield from (referee_one.drop_one(*item) for item in items)
        return
    with WorkerPool(items, referee_one.worker, workers, _LIMITS, _SENT, _idle) as pool:
        for _, answer in pool:
            if isinstance(answer, Failure):
                _log.warning("C MuJoCo: an object is %s: %s", answer.reason, answer.message)
                yield answer.reason
                continue
            end = pickle.loads(answer)
            if isinstance(end, DropError):
                raise end
            yield end
