"""How the processes of a run take turns: many may compile, and then one alone measures."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

TURN = "BENCHMARK_TURN"  # the variable that names the file which they lock
_held: list[int] = []  # the descriptor by which this process has the device for itself


@contextlib.contextmanager
def beside_others() -> Iterator[None]:
    """Nobody measures meanwhile, but others may compile."""
    path = os.environ.get(TURN)
    if path is None or _held:
        yield
        return
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(descriptor)


def alone() -> None:
    """From here to its end this process has the device for itself; returns when it has."""
    path = os.environ.get(TURN)
    if path is not None and not _held:
        _held.append(os.open(path, os.O_RDWR))
        fcntl.flock(_held[0], fcntl.LOCK_EX)
