"""Where the seconds of a run go."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import jax


class Stopwatch:
    """Seconds by stage; stages of one thread do not overlap.

    Attributes:
        seconds: stage -> seconds so far.
        compiling: what JAX says of its compilations in any thread; part of the stages' seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.compiling = 0.0

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts the time inside."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] += time.monotonic() - started

    @contextlib.contextmanager
    def compilation(self) -> Iterator[None]:
        """Listens to JAX."""

        def listen(event: str, duration_secs: float, **_) -> None:
            if event.startswith("/jax/core/compile/"):
                self.compiling += duration_secs

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
