"""A job of any size builds one program a shape bucket; that each is traced once, test_drop says."""

from __future__ import annotations

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sim_mjx import engines, plan, pool
from sim_mjx.buckets import BUCKETS
from sim_mjx.perturb import Perturbation
from sim_mjx.task import Task
from tests.sim import jobs, shapes

NAMES = ("towel3", "bread", "tatami", "rangeHood", "rock2", "stoneLantern")


@pytest.fixture
def built(monkeypatch) -> list:
    """The programs that are built; instead of them, every object ends at its first check."""
    calls = []

    def build(protocol, step, packet, slots, device):
        calls.append((protocol, step, jax.tree.map(np.shape, packet), slots))

        def advance(slots_now):
            done = slots_now.active
            outcome = pool.Outcome(slots_now.state.qpos, jnp.ones(slots, int), done, done)
            return slots_now._replace(active=~done & done), outcome

        return pool.Programs(
            empty=functools.partial(pool.empty, protocol.skin, slots),
            insert=functools.partial(pool.insert, protocol.skin),
            advance=advance,
            upload=lambda rows: rows,
        )

    monkeypatch.setattr(pool, "_build", build)
    monkeypatch.setattr(pool, "_compiled", {})
    return calls


def test_blocks_and_starts_share_the_programs(built, tmp_path):
    """Other sizes, another order, perturbed starts: two buckets, two programs."""
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
    assert len(built) == 2
    assert not plan.folder(out).exists()


def test_a_job_has_at_most_six_programs():
    """Five buckets of meshes; the sixth is that of bodies from occupancy."""
    assert len(BUCKETS) + 1 <= 6
