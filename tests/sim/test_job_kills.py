"""kill -9 at random moments, then the same command again: the table of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from sim_mjx import plan
from tests.sim import jobs


def start(files, out, workers: int) -> subprocess.Popen:
    """Begins `dso label` as a user would; two files a block, so that there are many parts."""
    options = ["--engine", "mujoco", "--protocol", "fast", "--block", "2"]
    command = [sys.executable, "-m", "dso_jax.cli.main", "label", str(files), "--out", str(out)]
    return subprocess.Popen(
        [*command, *options, "--workers", str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def parts(out) -> int:
    return len(list(plan.folder(out).glob("*.parquet")))


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finish(process: subprocess.Popen) -> None:
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()


def test_killed_and_resumed_is_undisturbed(tmp_path):
    """Three kills, each a random moment after the run has written a new part or two."""
    draw = random.Random(0)
    files = jobs.crowd(tmp_path / "meshes", 60)
    whole, out = tmp_path / "whole.parquet", tmp_path / "labels.parquet"
    assert jobs.label(files, whole, block=2)
    for _ in range(3):
        before, more = parts(out), draw.randint(1, 3)
        process = start(tmp_path / "meshes", out, workers=0)
        while parts(out) < before + more:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.03))
        kill(process)
        assert not out.exists()
        assert before < parts(out) < len(files) / 2
    finish(start(tmp_path / "meshes", out, workers=0))
    assert jobs.table(out).equals(jobs.table(whole))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"meshes", "whole.parquet", "labels.parquet"}  # nothing is left behind


@pytest.mark.slow
def test_ten_kills_at_any_moment(tmp_path):
    """From its first moment to past its last, with processes of its own that read files."""
    draw = random.Random(1)
    files = jobs.crowd(tmp_path / "meshes", 200)
    whole, out = tmp_path / "whole.parquet", tmp_path / "labels.parquet"
    started = time.monotonic()
    finish(start(tmp_path / "meshes", whole, workers=2))
    seconds, kept = time.monotonic() - started, []
    for number in range(10):
        process, before = start(tmp_path / "meshes", out, workers=2), parts(out)
        # How much of a run is its start depends on the machine: every other one lives to write.
        while number % 2 and parts(out) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.1 if number % 2 else 0.6 * seconds))
        kill(process)
        kept.append(parts(out))
        if out.exists():
            out.unlink()
    assert any(kept)
    finish(start(tmp_path / "meshes", out, workers=2))
    assert jobs.table(out).equals(jobs.table(whole))
    assert len(files) == len(jobs.table(out))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
