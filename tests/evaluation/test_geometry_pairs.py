"""Many pairs: bad files are rows, and neither workers nor order change a number."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from dso_jax.evaluation import geometry
from dso_jax.evaluation.pair import PairWorker
from dso_jax.evaluation.pairs import compare_files
from sim_mjx import meshes, worker, worker_pool
from tests.evaluation.variants import PATHS

SMALL = dataclasses.replace(geometry.PAPER, points=500)


def test_workers_order_and_bad_files(tmp_path):
    broken, flat = tmp_path / "broken.glb", tmp_path / "flat.obj"
    broken.write_bytes(b"glTF nothing")
    flat.write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", encoding="utf-8")
    good = [(a, b) for b in PATHS[:3] for a in PATHS[3:6]]
    bad = [(broken, PATHS[0]), (PATHS[0], tmp_path / "absent.obj"), (flat, PATHS[1])]
    pairs = [*good[:4], *bad, *good[4:]]
    done = []
    rows = list(compare_files(iter(pairs), SMALL, workers=2, progress=done.append))
    assert [(row.generated, row.truth) for row in rows] == pairs
    assert [row.index for row in rows] == list(range(12))
    assert done == [1] * 12
    assert [row.reason for row in rows if row.reason][:2] == ["not_a_mesh", "truth_unreadable"]
    assert rows[6].reason in ("flat", "empty") and "flat.obj" in rows[6].message
    assert all((row.message == "") == (row.geometry is not None) for row in rows)
    assert rows == list(compare_files(pairs, SMALL, workers=0))
    there = {pair: row.geometry for pair, row in zip(pairs, rows, strict=True)}
    for row in compare_files(pairs[::-1], SMALL, workers=0):
        assert row.geometry == there[row.generated, row.truth]
    first = rows[0].columns()
    assert rows[4].columns().keys() == first.keys()
    assert rows[4].columns()["chamfer"] is None
    assert isinstance(first["chamfer"], float) and first["generated"] == str(PATHS[3])


def test_a_truth_is_read_once(monkeypatch):
    read = []
    load = meshes.load_mesh
    monkeypatch.setattr("dso_jax.evaluation.pair.load_mesh", lambda p: (read.append(p), load(p))[1])
    worker = PairWorker(SMALL)
    for generated in PATHS[3:6]:
        worker((generated, PATHS[0]))
    assert read == [PATHS[3], PATHS[0], PATHS[4], PATHS[5]]
    for truth in PATHS[1:6]:  # more than are kept
        worker((PATHS[3], truth))
    assert len(worker._truths) < 6
    read.clear()
    worker((PATHS[3], PATHS[0]))
    assert read == [PATHS[3], PATHS[0]]


def test_a_pair_that_takes_too_long_is_a_row():
    limits = worker_pool.Limits(seconds=0.5)
    endless = dataclasses.replace(SMALL, points=1_000_000)
    (row,) = compare_files([(PATHS[3], PATHS[0])], endless, workers=1, limits=limits)
    assert (row.geometry, row.reason) == (None, "timeout")
    assert PATHS[3].name in row.message


def test_a_worker_does_without_jax():
    program = worker._PROGRAM.replace(
        "serve()\n",
        "import dso_jax.evaluation.pair\n"
        "assert not {'jax', 'mujoco', 'pyarrow', 'flax'} & set(sys.modules)\n",
    )
    folder = str(PATHS[0].parents[3] / "sim_mjx")
    subprocess.run([sys.executable, "-P", "-c", program, folder], check=True)


def test_closing_early_ends_the_processes():
    rows = compare_files([(a, PATHS[0]) for a in PATHS], SMALL, workers=1)
    assert next(rows).geometry is not None
    rows.close()
    with pytest.raises(StopIteration):
        next(rows)
