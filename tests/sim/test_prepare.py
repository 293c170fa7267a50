"""Preparation in worker processes: order, bounds, and files that kill or hang a worker."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from sim_mjx import meshes, worker, worker_pool
from sim_mjx.prepare import Limits, prepare
from tests.sim import shapes

MESHES = sorted((shapes.DATA / "meshes").glob("*.obj"))


# Faults that a parser could have, by the name of the file.
FAULTS = """
import os, time
from sim_mjx import mesh_files
read = mesh_files.read_bytes
def faulty(path):
    if path.stem == "hang":
        while True:
            pass
    if path.stem == "crash":
        open(str(path) + ".log", "a").write("x")
        os.abort()
    if path.stem == "grow":
        bytearray(2**33)
    return read(path)
mesh_files.read_bytes = faulty
from sim_mjx.prepare_one import serve
"""


@pytest.fixture
def faulty(monkeypatch, tmp_path):
    """Files that hang, crash or overfeed the worker that reads them."""
    program = worker._PROGRAM.replace("from sim_mjx.prepare_one import serve", FAULTS)
    assert program != worker._PROGRAM
    monkeypatch.setattr(worker, "_PROGRAM", program)
    return tmp_path / "hang.obj", tmp_path / "crash.obj", tmp_path / "grow.obj"


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


def test_files_that_hang_crash_or_overfeed_a_worker_are_rows(faulty):
    """The pool goes on behind each of them."""
    hang, crash, grow = faulty
    paths = [MESHES[0], hang, MESHES[1], crash, grow, *MESHES[2:4]]
    limits = Limits(seconds=1.5, memory_bytes=2**31)
    rows = list(prepare(paths, shapes.EVAL, workers=1, limits=limits))
    assert [row.reason for row in rows] == ["", "timeout", "", "crashed", "crashed", "", ""]
    assert [row.body is None for row in rows] == [bool(row.reason) for row in rows]
    assert "hang.obj" in rows[1].message
    assert "SIGABRT" in rows[3].message
    assert (crash.parent / "crash.obj.log").read_text() == "xx"  # once more, then given up
    assert "memory" in rows[4].message


def test_a_worker_killed_from_outside_costs_no_row(monkeypatch):
    """The file it was at is tried again; a file that kills two workers is given up."""
    asked = []
    ask = worker.Worker.ask

    def kill_on_some(self, paths):
        asked.append(paths)
        if len(asked) in (1, 4):
            self.kill()
        ask(self, paths)

    monkeypatch.setattr(worker.Worker, "ask", kill_on_some)
    rows = list(prepare(MESHES * 2, shapes.EVAL, workers=1))
    assert [row.reason for row in rows] == [""] * 48
    assert [row.path for row in rows] == MESHES * 2
    assert sum(map(len, asked)) > 48


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


def test_closing_early_leaves_no_process(faulty, monkeypatch):
    started = []
    start = worker_pool.WorkerPool._start

    def remember(self, **how):
        started.append(start(self, **how))
        return started[-1]

    monkeypatch.setattr(worker_pool.WorkerPool, "_start", remember)
    rows = prepare([MESHES[0], faulty[0], *MESHES], shapes.EVAL, workers=2)
    next(rows)
    assert any(one._process.poll() is None for one in started)
    began = time.monotonic()
    rows.close()
    assert time.monotonic() - began < 5
    assert [one._process.poll() is None for one in started] == [False, False]


def test_an_error_of_the_paths_reaches_the_consumer():
    def paths():
        yield MESHES[0]
        raise RuntimeError("no more paths")

    with pytest.raises(RuntimeError, match="no more paths"):
        list(prepare(paths(), shapes.EVAL, workers=2))


def test_workers_that_cannot_start_are_an_error(monkeypatch):
    monkeypatch.setattr(worker, "_PROGRAM", "raise SystemExit('numpy is missing')")
    with pytest.raises(worker.WorkerError, match="numpy is missing"):
        list(prepare(MESHES, shapes.EVAL, workers=1))


def test_a_worker_does_without_jax():
    program = worker._PROGRAM.replace(
        "serve()\n", "assert not {'jax', 'mujoco', 'pyarrow'} & set(sys.modules)\n"
    )
    folder = str(shapes.DATA.parents[1] / "sim_mjx")
    subprocess.run([sys.executable, "-P", "-c", program, folder], check=True)
