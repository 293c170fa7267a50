"""Many rows through a compiled function in batches of one shape, so that it compiles once."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Progress = Callable[[int], None]


def run(
    function: Callable[..., jax.Array],
    *arrays: np.ndarray,
    size: int,
    progress: Progress | None = None,
) -> np.ndarray:
    """`function` of the rows of `arrays`, `size` at a time; its results on the host.

    The last batch repeats its last row. One batch is in flight while the one before is copied.

    Args:
      function: of one array of `size` rows for each of `arrays`, to an array of as many rows.
      progress: called with the number of rows that have just finished.

    Raises:
      ValueError: there are no rows, so nobody knows the shape of the result.
    """
    if not len(arrays[0]):
        raise ValueError("nothing to do: no samples were asked for")
    results: list[np.ndarray] = []

    def collect(count: int, value: jax.Array) -> None:
        results.append(np.asarray(value)[:count])
        if progress:
            progress(count)

    waiting: tuple[int, jax.Array] | None = None
    for start in range(0, len(arrays[0]), size):
        parts = [array[start : start + size] for array in arrays]
        count = len(parts[0])
        filled = [np.concatenate([p, np.repeat(p[-1:], size - count, axis=0)]) for p in parts]
        value = function(*map(jnp.asarray, filled))
        if waiting:
            collect(*waiting)
        waiting = (count, value)
    assert waiting
    collect(*waiting)
    return np.concatenate(results)
