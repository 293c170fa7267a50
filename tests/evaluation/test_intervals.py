"""Intervals of tables with gaps."""

from __future__ import annotations

import numpy as np
import pytest

from dso_jax.evaluation import intervals
from dso_jax.evaluation.intervals import Bootstrap
from dso_jax.statistics import grouped_mean


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 3).astype(str)
    return rng.normal(size=(90, 2)) + np.repeat(rng.normal(size=30), 3)[:, None], groups


def test_without_gaps_they_are_those_of_one_column(data, monkeypatch):
    values, groups = data
    monkeypatch.setattr(intervals, "_CHUNK", 999)  # draws in many parts
    for i, found in enumerate(Bootstrap(groups).means(values, 500)):
        expected = grouped_mean(values[:, i], groups, resamples=500)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_gap_does_not_count(data):
    values, groups = data
    values[:45, 0] = np.nan
    found = Bootstrap(groups).means(values, 2000)[0]
    assert found.mean == pytest.approx(values[45:, 0].mean())
    # Half the objects: an interval as of those alone, up to how many a draw takes.
    alone = grouped_mean(values[45:, 0], groups[45:], resamples=2000)
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.15)
    nothing = Bootstrap(groups).means(np.full((90, 1), np.nan), 10)[0]
    assert np.isnan(nothing).all()


def test_median_is_that_of_drawn_objects(data, monkeypatch):
    values, groups = data
    values[7, 0] = np.nan
    monkeypatch.setattr(intervals, "_CHUNK", 500)
    found = Bootstrap(groups).median(values[:, 0], 300)
    assert found.mean == np.nanmedian(values[:, 0])
    draws = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), 300)
    order = np.unique(groups)
    medians = []
    for draw in draws:
        count = dict(zip(order, draw, strict=True))
        taken = np.repeat(values[:, 0], [count[g] for g in groups])
        taken = np.sort(taken[np.isfinite(taken)])
        medians.append(taken[(len(taken) - 1) // 2])
    np.testing.assert_allclose(found[1:], np.quantile(medians, [0.025, 0.975]))
    assert np.isnan(Bootstrap(groups).median(np.full(90, np.nan), 10)).all()
