"""A job of any size traces one program a shape bucket."""

from __future__ import annotations

import shutil
import sys

import chex
import jax.numpy as jnp
import pytest

from sim_mjx import engines, plan
from sim_mjx.buckets import BUCKETS
from sim_mjx.perturb import Perturbation
from sim_mjx.rows import Task
from tests.sim import jobs, shapes

NAMES = ("towel3", "bread", "tatami", "rangeHood", "rock2", "stoneLantern")


@pytest.fixture
def drop_module(monkeypatch):
    """`sim_mjx.drop` that traces its program and then, instead of it, ends every object at once."""
    module = sys.modules["sim_mjx.drop"]  # the package's name `drop` is the function

    def finished(pool, fresh, refill):
        count = len(refill)
        done = jnp.ones(count, bool)
        outcome = module.Outcome(pool.state.qpos, jnp.ones(count, int), done, done)
        return pool, outcome

    monkeypatch.setattr(module, "advance", chex.assert_max_traces(module.advance, n=2))
    monkeypatch.setattr(module, "_program", module._program.__wrapped__)
    monkeypatch.setattr(module, "_compiled", {})
    monkeypatch.setattr(module, "_compile", lambda *_: finished)
    return module


def test_blocks_and_starts_share_the_programs(drop_module, tmp_path):
    """Other sizes, another order, perturbed starts: two buckets, two traces."""
    folder = tmp_path / "meshes"
    folder.mkdir()
    for i in range(13):
        shutil.copy(shapes.mesh_path(NAMES[i * i % 6]), folder / f"{i:02d}.obj")
    task = Task(shapes.FAST, engines.resolve("mjx"), False, Perturbation(0.02, 3))
    out = tmp_path / "labels.parquet"
    for shard in ((1, 2), (0, 2)):
        jobs.label(sorted(folder.iterdir()), out, task, block=5, shard=shard)
    assert len(jobs.table(out)) == 13
    assert len({int(points > 64) for points in jobs.table(out)["points"].to_pylist()}) == 2
    assert len(drop_module._compiled) == 2
    assert not plan.folder(out).exists()


def test_a_job_has_at_most_six_programs():
    """Five buckets of meshes; the sixth is that of bodies from occupancy."""
    assert len(BUCKETS) + 1 <= 6
