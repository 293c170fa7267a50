"""Grouped bootstrap intervals, against numbers worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dso_jax.statistics import grouped_mean, paired_difference


def test_three_groups_match_all_27_draws():
    """With so few groups, every possible draw can be listed: the quantiles must agree."""
    values = np.array([1, 1, 0, 0, 0, 1], float)
    groups = np.array(["a", "a", "b", "b", "c", "c"])
    means = {"a": 1.0, "b": 0.0, "c": 0.5}
    draws = [np.mean([means[g] for g in draw]) for draw in itertools.product("abc", repeat=3)]
    found = grouped_mean(values, groups, level=0.8)
    assert found.mean == 0.5
    assert found.low == pytest.approx(np.quantile(draws, 0.1, method="inverted_cdf"))
    assert found.high == pytest.approx(np.quantile(draws, 0.9, method="inverted_cdf"))


def test_groups_of_unequal_size_weigh_by_their_samples():
    values = np.array([1.0, 0.0, 0.0, 0.0])
    found = grouped_mean(values, np.array([7, 9, 9, 9]))
    # The draws are 77, 79, 97 and 99, of means 1, 1/4, 1/4 and 0.
    assert found == (0.25, 0.0, 1.0)


def test_the_interval_resamples_objects_not_samples():
    """Copies of a sample are no news: the interval must not shrink with them."""
    values = np.random.default_rng(0).uniform(size=40) < 0.7
    once = grouped_mean(values, np.arange(40))
    copied = grouped_mean(np.repeat(values, 9), np.repeat(np.arange(40), 9))
    assert copied == pytest.approx(once)


def test_the_width_is_that_of_the_normal_approximation():
    values = np.arange(400) % 4 == 0
    found = grouped_mean(values, np.arange(400))
    error = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert found.high - found.low == pytest.approx(2 * error, rel=0.05)


def test_a_constant_gain_has_no_width_however_hard_the_objects_vary():
    before = np.random.default_rng(1).normal(size=30)
    found = paired_difference(before, before + 2, np.arange(30) // 3)
    assert found == pytest.approx((2, 2, 2))


def test_intervals_are_repeatable():
    values, groups = np.arange(20) % 3 == 0, np.arange(20) // 2
    assert grouped_mean(values, groups) == grouped_mean(values, groups)


@pytest.mark.parametrize(
    ("values", "groups"), [([], []), ([1.0], [1, 2]), ([[1.0]], [[1]]), ([1.0, np.nan], [1, 2])]
)
def test_what_has_no_mean_is_refused(values, groups):
    with pytest.raises(ValueError, match=r"expected two|not finite"):
        grouped_mean(np.array(values), np.array(groups))


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="pairs"):
        paired_difference(np.ones(3), np.ones(2), np.arange(3))
