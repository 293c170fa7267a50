"""Where the seconds of a run go."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

from sim_mjx import clock


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

    def compilation(self) -> contextlib.AbstractContextManager[None]:
        """Listens to JAX."""
        return clock.compilation(self._compiled)

    def _compiled(self, seconds: float) -> None:
        self.compiling += seconds
