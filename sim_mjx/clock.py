"""Where the seconds of a labelling job go."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

import jax


@dataclasses.dataclass
class Clock:
    """Seconds of a run, apart: bodies are made while others are simulated, so they overlap.

    Attributes:
        waiting: the engine had nothing to do, because no bodies were ready.
        simulating: something was in the engine, compilation included.
        compiling: of that, making or loading programs.
        finishing: close calls, margins, rows and files.
    """

    waiting: float = 0.0
    simulating: float = 0.0
    compiling: float = 0.0
    finishing: float = 0.0

    def compiled(self, seconds: float) -> None:
        """Counts a compilation."""
        self.compiling += seconds


class Occupied:
    """Adds to the clock how long at least one batch was in the engine; used by two threads."""

    def __init__(self, clock: Clock):
        self._clock, self._lock = clock, threading.Lock()
        self._inside, self._since = 0, 0.0

    def enter(self) -> None:
        """A batch goes in."""
        with self._lock:
            if not self._inside:
                self._since = time.perf_counter()
            self._inside += 1

    def leave(self) -> None:
        """A batch has come out."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._clock.simulating += time.perf_counter() - self._since


@contextlib.contextmanager
def compilation(add: Callable[[float], None]) -> Iterator[None]:
    """Listens to JAX: `add` gets the seconds of every compilation, of any thread."""

    def listen(event: str, duration_secs: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            add(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
