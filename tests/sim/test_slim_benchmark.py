"""The benchmark of steps a second, at a size that only shows that it runs."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "slim.py"


@pytest.mark.slow
def test_a_case_of_each_size_is_measured(tmp_path):
    out = tmp_path / "slim.json"
    arguments = ["--worlds", "2", "--chunks", "1", "-f", "^slim-2w|^stock-2w-64p", "--out", out]
    subprocess.run([sys.executable, SCRIPT, *arguments], check=True, timeout=300)
    cases = {case["name"]: case for case in json.loads(out.read_text())["cases"]}
    assert list(cases) == ["stock-2w-64p", "slim-2w-64p", "slim-2w-256p"]
    assert all(case["steps_per_second"] > 0 for case in cases.values())
    # The same drop: engines end in the same poses.
    stock, slim = cases["stock-2w-64p"], cases["slim-2w-64p"]
    assert abs(stock["mean_tilt_cosine"] - slim["mean_tilt_cosine"]) < 2e-4
