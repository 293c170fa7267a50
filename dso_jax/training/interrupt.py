"""A clean stop: SIGINT and SIGTERM ask the loop to finish its step, save and leave."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether to stop; true from the first signal on."""

    requested = False


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Yield a `Stop` that the first SIGINT or SIGTERM sets; a second one interrupts at once.

    The former handlers come back at the end. Outside the main thread, where Python allows no
    handlers, the `Stop` is simply never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        logger.warning("%s: saving and stopping", signal.Signals(number).name)

    former = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
