"""Means with bootstrap intervals for samples that come in groups.

Samples of one object succeed and fail together, so what is resampled is the object, never the
sample: with 4 samples of 96 objects there are 96 independent draws, not 384.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

RESAMPLES = 10_000  # the ends of a 95 % interval then move by about 1 % of its width


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def grouped_mean(
    values: Shaped[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over samples, with a percentile bootstrap interval that resamples groups.

    Args:
        values: one number or truth value for each sample, finite.
        groups: the object that each sample belongs to; any labels.
        level: coverage of the interval, between 0 and 1.
        resamples: number of bootstrap draws.
        seed: of the draws, so that a report is repeatable.

    Raises:
        ValueError: no samples, arrays of different lengths, or a value that is not finite.
    """
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape or not values.size:
        raise ValueError(
            f"expected two non-empty lists of one length, got {values.shape} and {groups.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {values.size} values are not finite")
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    size = len(counts)
    # How often each draw takes each group; the mean of a draw is then a ratio of two products.
    draws = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), resamples)
    means = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(
    before: Shaped[np.ndarray, " n"],
    after: Shaped[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    **options,
) -> Interval:
    """The mean of after - before over paired samples (same object, same noise).

    Pairing removes what the two share, how hard an object is above all, so the interval is
    narrower than the difference of two separate ones.

    Args:
        before, after: one number for each sample, in the same order.
        groups, options: as for `grouped_mean`.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape:
        raise ValueError(f"expected pairs, got {before.shape} and {after.shape} samples")
    return grouped_mean(after - before, groups, **options)
