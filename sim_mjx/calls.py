"""Engines that drop a batch at a time, behind the interface of a stream.

One batch is dropped and one waits, so that whoever puts them in can make the next meanwhile.
"""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sim_mjx.bodies import RigidBody
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest


class _AbandonedError(Exception):
    """Ends a batch whose result no one waits for; seen by no one."""


class CallStream:
    """`stream.DropStream` for an engine's function; results come in the order of the batches.

    Args:
        call: `call(bodies, protocol, progress=...)`, an engine's drop; it also gets `reasons` where
            `put` does.
        protocol: what is simulated.
        progress: called with the number of objects that have just finished.
    """

    def __init__(
        self,
        call: Callable[..., Rest],
        protocol: Protocol,
        *,
        progress: Callable[[int], None] | None = None,
    ):
        self._call, self._protocol = call, protocol
        self._report = progress or (lambda count: None)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "call")
        self._calls: collections.deque[tuple[Any, concurrent.futures.Future]] = collections.deque()
        self._lock = threading.Condition()
        self._latest: list[concurrent.futures.Future] = []
        self._closed, self._stopped = False, False

    def __enter__(self) -> CallStream:
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._lock:
            self._closed, self._stopped = True, kind is not None
            self._lock.notify_all()
        self._executor.shutdown(cancel_futures=kind is not None)

    def put(
        self, bodies: RigidBody, reasons: Sequence[str | None] | None = None, tag: Any = None
    ) -> None:
        """Adds a batch; waits while another one waits.

        Raises:
            ValueError: the stream is closed.
        """
        concurrent.futures.wait(self._latest[:-1])
        with self._lock:
            if self._closed:
                raise ValueError("put: the stream is closed")
            options = {} if reasons is None else {"reasons": reasons}
            call = self._executor.submit(
                self._call, bodies, self._protocol, progress=self._progress, **options
            )
            self._latest = [*self._latest[-1:], call]
            self._calls.append((tag, call))
            self._lock.notify_all()

    def close(self) -> None:
        """Nothing more will be put in; what is there runs to its end."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def ready(self) -> Iterator[tuple[Any, Rest]]:
        """What has ended and was not handed out yet; does not wait."""
        while self._calls and self._calls[0][1].done():
            tag, call = self._calls.popleft()
            yield tag, call.result()

    def results(self) -> Iterator[tuple[Any, Rest]]:
        """Waits for batches, until the stream is closed and all were handed out."""
        while True:
            with self._lock:
                while not (self._calls or self._closed):
                    self._lock.wait()
                if not self._calls:
                    return
                tag, call = self._calls.popleft()
            yield tag, call.result()

    def _progress(self, count: int) -> None:
        if self._stopped:
            raise _AbandonedError
        self._report(count)
