"""Many rows through a compiled function in batches of one shape, so that it compiles once."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

Progress = Callable[[int], None]
Function = Callable[..., jax.Array]


def run(
    functions: Function | Sequence[Function],
    *arrays: np.ndarray,
    size: int,
    groups: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """A function of the rows of `arrays`, `size` at a time; its results on the host.

    The last batch of a group repeats its last row. One batch a function is in flight while those
    before are copied. What shares a batch, and where in it a row is, may decide the last bits of
    its result; with groups, neither depends on the other groups or on the number of functions.

    Several functions are called by a thread each, since a call may only return when the last of its
    kernels fits into the queue of a GPU: that of a sampler lasts nearly as long as the sampling.

    Args:
      functions: one, of one array of `size` rows for each of `arrays`, to an array of as many rows;
        or one for each device, that take batches in turn: see `copies`.
      groups: numbers of consecutive rows that share no batch with others; by default all may.
      progress: called with the number of rows that have just finished.

    Raises:
      ValueError: there are no rows, so nobody knows the shape of the result.
    """
    count = len(arrays[0])
    if not count:
        raise ValueError("nothing to do: no samples were asked for")
    functions = [functions] if callable(functions) else functions
    results: list[np.ndarray] = []

    def collect(first: int, last: int, value: Future[jax.Array]) -> None:
        found = np.asarray(value.result())[: last - first]
        if not results:
            results.append(np.empty((count, *found.shape[1:]), found.dtype))
        results[0][first:last] = found  # while the next batch is in the network
        if progress:
            progress(last - first)

    waiting: deque[tuple[int, int, Future[jax.Array]]] = deque()
    ends = np.cumsum(groups if groups is not None else [count]).tolist()
    starts = [0, *ends[:-1]]
    edges = [
        (first, min(first + size, end))
        for start, end in zip(starts, ends, strict=True)
        for first in range(start, end, size)
    ]
    with _callers(len(functions)) as callers:
        for turn, (first, last) in enumerate(edges):
            parts = [array[first:last] for array in arrays]
            missing = size - (last - first)
            filled = [np.concatenate([p, np.repeat(p[-1:], missing, axis=0)]) for p in parts]
            # From numpy an array goes straight to the device of the function's parameters.
            call, function = callers[turn % len(callers)], functions[turn % len(functions)]
            waiting.append((first, last, call(function, *filled)))
            if len(waiting) > len(callers):
                collect(*waiting.popleft())
        while waiting:
            collect(*waiting.popleft())
    return results[0]


@contextlib.contextmanager
def _callers(count: int) -> Iterator[Sequence[Callable[..., Future]]]:
    """Who calls each function: a thread of its own, or for a single one this thread."""
    if count == 1:
        yield [_call]
        return
    threads = [ThreadPoolExecutor(1, "batches") for _ in range(count)]
    try:
        yield [thread.submit for thread in threads]
    finally:
        for thread in threads:
            thread.shutdown(wait=False, cancel_futures=True)
        for thread in threads:
            thread.shutdown()


def _call(function: Function, *arrays: np.ndarray) -> Future[jax.Array]:
    called: Future[jax.Array] = Future()
    called.set_result(function(*arrays))
    return called


def copies(tree: Any, devices: Sequence[Any]) -> list[Any]:
    """A copy of parameters on each device; what a function computes follows its parameters."""
    return [jax.device_put(tree, device) for device in devices]
