"""Bootstrap intervals of many measures at once, objects resampled, gaps allowed.

As `dso_jax.statistics`, for tables: the draws are made once, a bounded number at a time, and every
column is summed over them by one product. A sample without a value (NaN) does not count.

Legend: n samples, m measures, g groups, c draws at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, Shaped

from dso_jax.statistics import RESAMPLES, Interval

# The interval of a median is a step function of the draws, and each costs a pass over all samples.
MEDIAN_RESAMPLES = 2000
_CHUNK = 4_000_000  # numbers that a chunk of draws may hold


class Bootstrap:
    """Percentile intervals for samples of objects.

    Args:
        groups: (n,) the object of each sample; any labels.
        level: coverage.
        seed: of the draws.
    """

    def __init__(
        self, groups: Shaped[np.ndarray, " n"], *, level: float = 0.95, seed: int = 0
    ) -> None:
        _, self._group = np.unique(np.asarray(groups).astype(str), return_inverse=True)
        self._ends = (1 - level) / 2, (1 + level) / 2
        self._seed = seed

    def means(self, values: Float[np.ndarray, "n m"], resamples: int = RESAMPLES) -> list[Interval]:
        """Mean and interval of each column; NaN where nothing was measured."""
        values = np.asarray(values, np.float64)
        known = np.isfinite(values)
        sums = self._by_group(np.where(known, values, 0.0))
        counts = self._by_group(known.astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            centre = sums.sum(axis=0) / counts.sum(axis=0)
            drawn = np.concatenate(
                [(draws @ sums) / (draws @ counts) for draws in self._draws(resamples)]
            )
        return [self._interval(centre[i], drawn[:, i]) for i in range(values.shape[1])]

    def median(
        self, values: Float[np.ndarray, " n"], resamples: int = MEDIAN_RESAMPLES
    ) -> Interval:
        """Median over samples, and its interval."""
        rows = np.flatnonzero(np.isfinite(values))
        if not len(rows):
            return Interval(np.nan, np.nan, np.nan)
        rows = rows[np.argsort(values[rows], kind="stable")]
        ordered = values[rows]
        found = []
        for draws in self._draws(resamples, wide=len(rows)):
            weight = np.cumsum(draws[:, self._group[rows]], axis=1)
            drawn = weight[weight[:, -1] > 0]
            found.append(ordered[(2 * drawn >= drawn[:, -1:]).argmax(axis=1)])
        return self._interval(float(np.median(ordered)), np.concatenate(found))

    def _by_group(self, values: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "g m"]:
        total = np.zeros((self._group.max(initial=-1) + 1, values.shape[1]))
        np.add.at(total, self._group, values)
        return total

    def _draws(self, resamples: int, wide: int = 0) -> Iterator[Int[np.ndarray, "c g"]]:
        """How often each draw takes each group."""
        size = int(self._group.max(initial=-1)) + 1
        random, chunk = np.random.default_rng(self._seed), max(1, _CHUNK // max(size, wide))
        for first in range(0, resamples, chunk):
            count = min(chunk, resamples - first)
            yield random.multinomial(size, np.full(size, 1 / size), count)

    def _interval(self, centre: float, drawn: Float[np.ndarray, " r"]) -> Interval:
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return Interval(np.nan, np.nan, np.nan)
        low, high = np.quantile(drawn, self._ends)
        return Interval(float(centre), float(low), float(high))
