"""The benchmark of steps a second, at a size that only shows that it runs."""

from __future__ import annotations

import pytest

from benchmarks import slim
from benchmarks.measure import Run


@pytest.mark.slow
def test_a_case_of_each_size_is_measured():
    run = Run("small", repeats=1)
    shapes = (("stock", 64), ("slim", 64), ("slim", 256))
    cases = [slim.steps(run, engine, 1024, points) for engine, points in shapes]
    assert all(case["steps_per_s"] > 0 for case in cases)
    # The same drop: engines end in the same poses.
    assert abs(cases[0]["mean_tilt_cosine"] - cases[1]["mean_tilt_cosine"]) < 2e-4
