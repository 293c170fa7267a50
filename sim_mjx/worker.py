"""Worker processes: one program each, fed through pipes, and those that wait for more to do."""

from __future__ import annotations

import atexit
import collections
import contextlib
import dataclasses
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

from sim_mjx.prepare_one import receive, send

# The package's own __init__ brings in JAX, which workers do without: they get an empty package.
_PROGRAM = """
import os, sys, types
sys.path.append(os.path.dirname(sys.argv[1]))
package = types.ModuleType("sim_mjx")
package.__path__ = [sys.argv[1]]
sys.modules["sim_mjx"] = package
from sim_mjx.prepare_one import serve
serve()
"""
_BUFFER = 2**20  # many answers are read at once when we are the slower side


class WorkerError(RuntimeError):
    """Worker processes cannot be started."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A worker died over a file."""

    reason: str
    message: str


class Worker:
    """One process and its pipes.

    Args:
        first: what it is told at first, see `prepare_one.serve`.

    Raises:
        WorkerError: it does not start.
    """

    def __init__(self, first: bytes):
        self.first = first
        # BLAS threads would fight over the cores that the other workers have.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with contextlib.ExitStack() as opened:
            try:
                self._errors = opened.enter_context(tempfile.TemporaryFile())
                self._process = subprocess.Popen(
                    # -P: no module is taken from the working folder.
                    [sys.executable, "-P", "-c", _PROGRAM, str(pathlib.Path(__file__).parent)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    env=environment,
                    bufsize=_BUFFER,
                )
            except OSError as error:  # too many open files, or processes
                text = f"a worker process does not start: {error.strerror}"
                raise WorkerError(text) from error
            opened.pop_all()  # `end` closes it
        self._requests: Any = self._process.stdin
        self._answers: Any = self._process.stdout
        self._send(first)
        if self.answer() is None:
            failure = self.end()
            raise WorkerError(f"a worker process does not start: {failure.message}")

    def ask(self, paths: list[Any]) -> None:
        if paths:
            self._send(pickle.dumps(paths))

    def answer(self) -> bytes | None:
        """The next answer, or None: the process is gone."""
        return receive(self._answers)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> Failure:
        """Ends the process and says how it went."""
        self._answers.close()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self._errors.close()
        if status == -signal.SIGALRM:
            return Failure("timeout", "took longer than a file may")
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return Failure("crashed", f"the worker died ({name}){': ' + said[-1] if said else ''}")

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died; `answer` will say so
            send(self._requests, message)


class IdleWorkers:
    """Workers that wait for the next pool, until the program ends; for any thread.

    Starting one costs a third of a second of a core, which many short pools should pay once. There
    are as many as were at work at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[int, bytes], list[Worker]] = collections.defaultdict(list)
        atexit.register(self.end)

    def __bool__(self) -> bool:
        with self._lock:
            return any(workers for key, workers in self._idle.items() if key[0] == os.getpid())

    def take(self, first: bytes) -> Worker | None:
        """A worker that began with this message, or None; those that have died meanwhile go."""
        with self._lock:
            idle = self._own(first)
            while idle:
                worker = idle.pop()
                if worker.is_alive():
                    return worker
                worker.end()
        return None

    def leave(self, worker: Worker) -> None:
        """Takes in a worker that has answered all it was asked."""
        with self._lock:
            self._own(worker.first).append(worker)

    def end(self) -> None:
        """Ends all of them."""
        with self._lock:
            own = [key for key in self._idle if key[0] == os.getpid()]
            idle = [worker for key in own for worker in self._idle.pop(key)]
        for worker in idle:
            worker.kill()
        for worker in idle:
            worker.end()

    def _own(self, first: bytes) -> list[Worker]:
        # A fork of this program must not talk to the workers of its parent.
        return self._idle[os.getpid(), first]
