"""A pool of worker processes whose members may crash or hang over a file.

`concurrent.futures` gives up a whole pool when one process dies, and `multiprocessing` forks (not
safe once JAX runs threads) or imports the user's main script again. Here each worker is a program
of its own (`sim_mjx.worker`), fed through pipes by a thread of ours. A worker that dies is
replaced; the file it was at is tried once more and then given up.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sim_mjx.sizes import cores
from sim_mjx.worker import Failure, IdleWorkers, Worker

# How far the pool runs ahead of the consumer.
_AHEAD_FILES = 4096
_AHEAD_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one file may take.

    Attributes:
        seconds: wall time; the file is then `timeout`.
        memory_bytes: address space of a worker; more is `crashed`.
    """

    seconds: float = 60.0
    memory_bytes: int = 4 * 2**30


class WorkerPool:
    """Iterates over (path, answer) in the order of the paths; a context manager.

    Args:
        paths: what a worker is given at a time: a path, or anything else that can be pickled.
        make: called once in each worker, makes the function from a path to its answer; the answer
            arrives pickled. Its module is imported there, so it should not bring in JAX.
        workers: processes; None takes one a core.
        limits: what one path may take.
        sent: paths that a worker has before it, so that it need not wait for our thread; they go in
            one message, which counts where a path is done in a millisecond.
        idle: where workers come from and go back to, if not started and ended with the pool. One
            that was abandoned ends its workers, since they may be at a path that takes long.
    """

    def __init__(
        self,
        paths: Iterable[Any],
        make: Callable[[], Callable[[Any], Any]],
        workers: int | None,
        limits: Limits,
        sent: int = 3,
        idle: IdleWorkers | None = None,
    ):
        self._idle = idle
        self._paths = enumerate(paths)
        self._sent = sent
        self._first = pickle.dumps({"make": make, **dataclasses.asdict(limits)})
        lock = threading.Lock()
        self._known = threading.Condition(lock)  # the next answer, or that there is none
        self._room = threading.Condition(lock)  # for more answers
        self._given = 0  # paths taken so far
        self._taken = 0  # answers that the consumer has had
        self._bytes = 0  # of answers waiting for the consumer
        self._answers: dict[int, tuple[Any, bytes | Failure]] = {}
        self._exhausted = False
        self._stopped = False
        self._killed = False  # the workers there were when it stopped
        self._error: BaseException | None = None
        self._workers: set[Worker] = set()
        self._threads = [
            threading.Thread(target=self._drive, name=f"worker-{i}", daemon=True)
            for i in range(workers or cores())
        ]

    def __enter__(self) -> WorkerPool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        with self._room:
            self._stopped = True
            if self._idle is None or not self._is_finished():
                self._killed = True
                for worker in self._workers:
                    worker.kill()
            self._room.notify_all()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[tuple[Any, bytes | Failure]]:
        while True:
            with self._known:
                self._known.wait_for(self._next_is_known)
                if self._error is not None:
                    raise self._error
                if self._taken not in self._answers:
                    return
                path, answer = self._answers.pop(self._taken)
                self._taken += 1
                self._bytes -= len(answer) if isinstance(answer, bytes) else 0
                self._room.notify_all()
            yield path, answer

    def _next_is_known(self) -> bool:
        return self._taken in self._answers or self._is_finished() or self._error is not None

    def _is_finished(self) -> bool:
        return self._exhausted and self._taken >= self._given

    def _take(self, most: int, wait: bool) -> list[tuple[int, Any]]:
        """Up to `most` of the next paths; none if there are none (now, unless `wait`)."""
        with self._room:
            if wait:
                self._room.wait_for(lambda: self._stopped or self._exhausted or self._spare() > 0)
            if self._stopped or self._exhausted or self._spare() <= 0:
                return []
            taken = list(itertools.islice(self._paths, min(most, self._spare())))
            self._given += len(taken)
            if not taken:
                self._exhausted = True
                self._known.notify()
                self._room.notify_all()
            return taken

    def _spare(self) -> int:
        """Paths that may be begun before the consumer takes more answers."""
        room = self._bytes < _AHEAD_BYTES
        return _AHEAD_FILES - (self._given - self._taken) if room else 0

    def _drive(self) -> None:
        """One thread: keeps one worker busy until the paths or the pool end."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - the consumer raises it
            with self._known:
                self._error = self._error or error
                self._known.notify()

    def _work(self) -> None:
        sent: collections.deque[tuple[int, Any]] = collections.deque()
        suspect = -1  # the file over which a worker has died once
        worker: Worker | None = None
        try:
            while not self._stopped:
                if 2 * len(sent) <= self._sent:
                    # One at first, so that few paths are shared by as many workers as there are.
                    most = self._sent - len(sent) if worker is not None else 1
                    new = self._take(most, wait=not sent)
                    sent.extend(new)
                    if worker is not None:
                        worker.ask([path for _, path in new])
                if not sent:
                    return
                if worker is None:
                    worker = self._start(afresh=suspect == sent[0][0])
                    worker.ask([path for _, path in sent])
                answer: bytes | Failure | None = worker.answer()
                if answer is None:
                    failure = self._end(worker)
                    worker = None
                    if failure.reason != "timeout" and suspect != sent[0][0]:
                        suspect = sent[0][0]
                        continue
                    answer = failure
                index, path = sent.popleft()
                with self._known:
                    self._answers[index] = path, answer
                    self._bytes += len(answer) if isinstance(answer, bytes) else 0
                    if index == self._taken:
                        self._known.notify()
        finally:
            if worker is not None:
                self._leave(worker, at_work=bool(sent))

    def _start(self, afresh: bool) -> Worker:
        # A path is tried again with a new worker: whatever killed the first may kill idle ones.
        kept = None if afresh or self._idle is None else self._idle.take(self._first)
        worker = kept or Worker(self._first)
        with self._room:
            self._workers.add(worker)
            if self._stopped:
                worker.kill()
        return worker

    def _leave(self, worker: Worker, at_work: bool) -> None:
        with self._room:
            self._workers.discard(worker)
        if self._idle is None or at_work or self._killed:
            worker.kill()  # it may be at something that takes long
            worker.end()
        else:
            self._idle.leave(worker)

    def _end(self, worker: Worker) -> Failure:
        with self._room:
            self._workers.discard(worker)
        return worker.end()
