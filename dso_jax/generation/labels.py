"""Labels of occupancy in the background: bodies on threads, drops in one pool that never drains.

A sampling batch alone would leave an accelerator waiting for launches through thousands of steps;
here objects of many batches share the slots, and whatever ends makes room for the next.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

import sim_mjx
from sim_mjx.margin import static_margin_deg
from sim_mjx.sizes import cores
from sim_mjx.stream import DropStream

_MAKERS = 4  # threads at most: a body of 64^3 voxels takes 13 ms
_PART = 32  # objects that a thread takes at once
_AHEAD = 3  # batches of logits whose bodies are not all made
# Slots on an accelerator: its turn comes between two batches of the sampler, and by then no more
# objects than this have been sampled since the oldest that still rolls.
_SLOTS = 4096

Done = Callable[[Any, sim_mjx.Rest, np.ndarray], None]


class Labelling:
    """Labels batches of occupancy logits while its owner does something else; a context manager.

    Leaving the `with` block waits for all labels; leaving it by an exception abandons them.

    Args:
        protocol: what is simulated.
        done: called with the tag of a batch, how its objects came to rest, and their static margin
            in degrees; from one thread, in the order in which batches end.
        also: called with the tag and all of its logits, from several threads.
        progress: called with the number of objects that have just come to rest.
    """

    def __init__(
        self,
        protocol: sim_mjx.Protocol,
        done: Done,
        *,
        also: Callable[[Any, np.ndarray], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._protocol, self._done, self._also = protocol, done, also
        self._makers = ThreadPoolExecutor(min(_MAKERS, cores()), "bodies")
        self._joining = ThreadPoolExecutor(1, "batches")
        self._room = threading.Semaphore(_AHEAD)
        self._made: list[Future] = []
        slots = None if jax.default_backend() == "cpu" else _SLOTS
        self._stream = DropStream(protocol, slots=slots, progress=progress)
        self._collecting = ThreadPoolExecutor(1, "labels")

    def __enter__(self) -> Labelling:
        self._stream.__enter__()
        self._collector = self._collecting.submit(self._collect)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            try:
                self.drain()
            except BaseException as fault:
                self._end(type(fault), fault)
                raise
        self._end(kind, error)

    def drain(self) -> None:
        """Waits for all labels; nothing may be put in afterwards."""
        for made in self._made:
            made.result()
        self._stream.close()
        self._collector.result()

    def put(self, tag: Any, logits: Float[np.ndarray, "N R R R"]) -> None:
        """Adds a batch; waits while too many wait.

        Raises:
            Exception: whatever has gone wrong with an earlier one.
        """
        if self._collector.done():
            self._collector.result()
        waiting = []
        for made in self._made:
            if made.done():
                made.result()
            else:
                waiting.append(made)
        self._room.acquire()
        starts = range(0, len(logits), _PART)
        parts = [self._makers.submit(self._make, logits[i : i + _PART]) for i in starts]
        also = self._also and self._makers.submit(self._also, tag, logits)
        self._made = [*waiting, self._joining.submit(self._join, tag, parts, also)]

    def _make(self, logits: np.ndarray) -> tuple[Any, list[str | None], np.ndarray]:
        saturation = self._protocol.saturation
        bodies, reasons = sim_mjx.bodies_from_occupancy(logits, saturation=saturation)
        return bodies, reasons, static_margin_deg(bodies)

    def _join(self, tag: Any, parts: Sequence[Future], also: Future | None) -> None:
        """Drops a batch as soon as all of its bodies are there."""
        try:
            bodies, reasons, margins = zip(*(part.result() for part in parts), strict=True)
            if also is not None:
                also.result()
            why = [reason for part in reasons for reason in part]
            self._stream.put(
                sim_mjx.concatenate(list(bodies)), why, tag=(tag, np.concatenate(margins))
            )
        finally:
            self._room.release()

    def _collect(self) -> None:
        for (tag, margin), rest in self._stream.results():
            margin[rest.status == "invalid"] = 0.0
            self._done(tag, rest, margin)

    def _end(self, kind, error) -> None:
        """Stops all threads; what they say after a failure is its consequence."""
        for pool in (self._makers, self._joining):
            pool.shutdown(wait=kind is None, cancel_futures=True)
        quiet = contextlib.nullcontext() if kind is None else contextlib.suppress(Exception)
        with quiet:
            self._stream.__exit__(kind, error, None)
        for pool in (self._makers, self._joining, self._collecting):
            pool.shutdown()
