"""Preparation in worker processes: order, bounds, and files that kill or hang a worker."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from sim_mjx import meshes, worker_pool
from sim_mjx.prepare import Limits, prepare
from tests.sim import shapes

MESHES = sorted((shapes.DATA / "meshes").glob("*.obj"))


@pytest.fixture
def hanging(tmp_path):
    """A file that nobody ever writes: opening it for reading waits for good."""
    path = tmp_path / "pipe.obj"
    os.mkfifo(path)
    return path


def test_workers_give_what_this_process_gives(tmp_path):
    paths = [*MESHES[:6], tmp_path / "absent.obj", MESHES[6]]
    here = list(prepare(paths, shapes.EVAL, workers=0))
    there = list(prepare(iter(paths), shapes.EVAL, workers=2))
    assert [one.index for one in there] == list(range(8))
    assert [one.path for one in there] == paths
    for a, b in zip(here, there, strict=True):
        assert (a.reason, a.sha256) == (b.reason, b.sha256)
        if a.body is not None and b.body is not None:
            np.testing.assert_array_equal(a.body.points, b.body.points)
            np.testing.assert_array_equal(a.body.inertia, b.body.inertia)
            assert a.body.provenance == b.body.provenance
    assert [one.reason for one in there] == [""] * 6 + ["unreadable", ""]
    assert (there[6].body is None) and "absent.obj" in there[6].message
    assert there[0].sha256 == meshes.sha256(MESHES[0])


def test_a_hanging_and_a_crashing_file_are_rows(hanging, tmp_path):
    """The pool goes on behind both. A worker with too little memory for a file loses only it."""
    bomb = tmp_path / "bomb.obj"
    with bomb.open("wb") as file:
        file.truncate(2**30)  # sparse: a gigabyte of zeros to read
    paths = [MESHES[0], hanging, bomb, *MESHES[1:4]]
    limits = Limits(seconds=3.0, memory_bytes=2**30)
    rows = list(prepare(paths, shapes.EVAL, workers=1, limits=limits))
    assert [row.reason for row in rows] == ["", "timeout", "crashed", "", "", ""]
    assert all(row.body is None for row in rows[1:3])


def test_a_worker_killed_from_outside_costs_no_row(monkeypatch):
    """The file it was at is tried again; a file that kills two workers is given up."""
    asked = []
    ask = worker_pool._Worker.ask

    def kill_on_third(self, path):
        asked.append(path)
        if len(asked) in (3, 11):
            self.kill()
        ask(self, path)

    monkeypatch.setattr(worker_pool._Worker, "ask", kill_on_third)
    rows = list(prepare(MESHES[:12], shapes.EVAL, workers=1))
    assert [row.reason for row in rows] == [""] * 12
    assert len(asked) > 12

    def kill_always(self, path):
        if path == MESHES[2]:
            self.kill()
        ask(self, path)

    monkeypatch.setattr(worker_pool._Worker, "ask", kill_always)
    monkeypatch.setattr(worker_pool, "_SENT_AHEAD", 0)
    rows = list(prepare(MESHES[:4], shapes.EVAL, workers=1))
    assert [row.reason for row in rows] == ["", "", "crashed", ""]
    assert "SIGKILL" in rows[2].message


def test_runs_ahead_by_a_bounded_number(monkeypatch):
    monkeypatch.setattr(worker_pool, "_AHEAD_FILES", 5)
    taken = []

    def paths():
        for _ in range(3):
            for path in MESHES:
                taken.append(path)
                yield path

    rows = prepare(paths(), shapes.EVAL, workers=2)
    for count in range(1, 20):
        next(rows)
        assert len(taken) <= count + 5
    deadline = time.monotonic() + 20
    while len(taken) < 19 + 5 and time.monotonic() < deadline:
        time.sleep(0.01)  # overlaps: the workers go on while nobody asks
    assert len(taken) == 19 + 5
    rows.close()


def test_closing_early_leaves_no_process(hanging, monkeypatch):
    started = []
    start = worker_pool.WorkerPool._start

    def remember(self):
        started.append(start(self))
        return started[-1]

    monkeypatch.setattr(worker_pool.WorkerPool, "_start", remember)
    rows = prepare([MESHES[0], hanging, *MESHES], shapes.EVAL, workers=2)
    next(rows)
    assert any(worker._process.poll() is None for worker in started)
    began = time.monotonic()
    rows.close()
    assert time.monotonic() - began < 5
    assert [worker._process.poll() is None for worker in started] == [False, False]


def test_an_error_of_the_paths_reaches_the_consumer():
    def paths():
        yield MESHES[0]
        raise RuntimeError("no more paths")

    with pytest.raises(RuntimeError, match="no more paths"):
        list(prepare(paths(), shapes.EVAL, workers=2))


def test_workers_that_cannot_start_are_an_error(monkeypatch):
    monkeypatch.setattr(worker_pool, "_PROGRAM", "raise SystemExit('numpy is missing')")
    with pytest.raises(worker_pool.WorkerError, match="numpy is missing"):
        list(prepare(MESHES, shapes.EVAL, workers=1))


def test_a_worker_does_without_jax():
    program = worker_pool._PROGRAM.replace(
        "serve()\n", "assert not {'jax', 'mujoco', 'pyarrow'} & set(sys.modules)\n"
    )
    folder = str(shapes.DATA.parents[1] / "sim_mjx")
    subprocess.run([sys.executable, "-P", "-c", program, folder], check=True)
