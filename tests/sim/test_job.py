"""Labelling jobs: the same table however they were cut, stopped or shared out."""

from __future__ import annotations

import collections
import dataclasses
import pathlib

import jax
import pyarrow as pa
import pytest

from sim_mjx import engines, job, label, pieces, plan
from sim_mjx.perturb import Perturbation
from tests.sim import jobs, shapes


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[pathlib.Path]:
    return jobs.crowd(tmp_path_factory.mktemp("job") / "meshes", 12)


@pytest.fixture(scope="module")
def undisturbed(files, tmp_path_factory) -> pa.Table:
    out = tmp_path_factory.mktemp("undisturbed") / "labels.parquet"
    assert jobs.label(files, out)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return jobs.table(out)


def test_every_file_has_its_row(files, undisturbed):
    assert undisturbed["path"].to_pylist() == [str(path) for path in files]
    assert undisturbed.schema.equals(label.SCHEMA)
    for row in undisturbed.to_pylist():
        reason = None
        for name, (_, expected) in jobs.GARBAGE.items():
            if row["path"].endswith(name):
                reason = expected
        assert row["reason"] == reason
        assert (row["status"] == "invalid") == (row["stable"] is None) == (reason is not None)
    assert {True, False} <= set(undisturbed["stable"].to_pylist())


def test_a_job_in_memory_gives_the_same_rows(files, undisturbed):
    table = label.label_files(files, shapes.FAST, engine="mujoco")
    assert table.equals(undisturbed)


def test_what_cannot_be_opened_is_a_row(tmp_path):
    folder = tmp_path / "folder.glb"
    folder.mkdir()
    out = tmp_path / "labels.parquet"
    assert jobs.label([folder, tmp_path / "gone.obj", shapes.mesh_path("bread")], out)
    assert jobs.table(out)["reason"].to_pylist() == ["not_a_file", "unreadable", None]


@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_job_goes_on_where_it_was(files, undisturbed, tmp_path, monkeypatch, written):
    """The disk is full after a few parts; the rest is done later, and nothing twice."""
    out, write = tmp_path / "labels.parquet", label.write_labels
    parts = iter(range(written))

    def full(table, path):
        if next(parts, None) is None:
            raise OSError("no space left")
        write(table, path)

    monkeypatch.setattr(label, "write_labels", full)
    with pytest.raises(plan.PlanError, match="no space left"):
        jobs.label(files, out)
    assert not out.exists()
    # Blocks are written in the order in which they end.
    kept = [int(path.stem) for path in plan.folder(out).glob("*.parquet")]
    assert len(kept) == written
    monkeypatch.setattr(label, "write_labels", write)
    read = collections.Counter()
    assert jobs.label(files, out, progress=lambda stage, n: read.update({stage: n}))
    assert read["read"] == len(files) - sum(len(files[4 * i : 4 * i + 4]) for i in kept)
    assert jobs.table(out).equals(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_an_error_while_reading_ends_the_job(files, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        yield from ()
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(job, "prepare", broken)
    with pytest.raises(RuntimeError, match="disk is gone"):
        jobs.label(files, tmp_path / "labels.parquet")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_make_the_whole(files, undisturbed, tmp_path, order):
    out = tmp_path / "labels.parquet"
    for place, index in enumerate(order):
        assert not out.exists()
        assert jobs.label(files, out, shard=(index, 3)) == (place == 2)
    assert jobs.table(out).equals(undisturbed)
    assert jobs.label(files, out, shard=(1, 3))  # a late shard finds the table
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_run_of_all_does_what_shards_left(files, undisturbed, tmp_path):
    out = tmp_path / "labels.parquet"
    assert not jobs.label(files, out, shard=(1, 2))
    assert jobs.label(files, out)
    assert jobs.table(out).equals(undisturbed)


def test_a_process_of_a_parallel_job_takes_its_share(files, tmp_path, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    out = tmp_path / "labels.parquet"
    assert not jobs.label(files, out)
    assert [p.stem for p in sorted(plan.folder(out).glob("*.parquet"))] == ["00001", "00004"]


def test_the_last_two_shards_may_both_join(files, undisturbed, tmp_path, monkeypatch):
    """One finds the parts gone while it reads them: the other has put the table in place."""
    out, task = tmp_path / "labels.parquet", jobs.TASK
    assert not jobs.label(files, out, shard=(0, 2))
    work = plan.make_plan(files, task, out, block=4)
    read = job.pq.read_table
    rival = []

    def slow(path, *arguments, **options):
        if path.name == "00001.parquet" and not rival:
            rival.append("under way")
            rival.append(job.merge(work, task, out))
        return read(path, *arguments, **options)

    monkeypatch.setattr(job.pq, "read_table", slow)
    assert job.run(work, task, out, shard=(1, 2), workers=0)
    assert rival == ["under way", True]
    assert jobs.table(out).equals(undisturbed)


def test_a_finished_job_is_not_done_again(files, tmp_path, monkeypatch):
    out = tmp_path / "labels.parquet"
    assert jobs.label(files, out)
    before = out.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(job, "prepare", None)  # calling it would be an error of its own
        assert jobs.label(files, out)
    assert out.read_bytes() == before
    read = collections.Counter()
    count = lambda stage, n: read.update({stage: n})  # noqa: E731
    assert jobs.label(files, out, overwrite=True, progress=count)
    assert read["drop"] == len(files)


CHANGES = {
    "protocol: timestep": {"protocol": shapes.EVAL},
    "engine": {"engine": dataclasses.replace(jobs.TASK.engine, name="bullet")},
    "re-adjudication": {"adjudicate": False},
    "perturbed starts": {"perturbation": Perturbation(0.1)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_job_does_not_touch_the_parts(files, tmp_path, name):
    out = tmp_path / "labels.parquet"
    jobs.label(files, out, shard=(0, 9))
    kept = sorted(plan.folder(out).iterdir())
    task = dataclasses.replace(jobs.TASK, **CHANGES[name])
    with pytest.raises(plan.PlanError, match=f"{name}.*--overwrite"):
        plan.make_plan(files, task, out)
    assert sorted(plan.folder(out).iterdir()) == kept
    work = plan.make_plan(files, task, out, overwrite=True)
    assert len(work.missing(out)) == work.blocks


def test_other_files_do_not_touch_the_parts(tmp_path):
    files = jobs.crowd(tmp_path / "meshes", 4)
    out = tmp_path / "labels.parquet"
    jobs.label(files, out, shard=(0, 9))
    with pytest.raises(plan.PlanError, match="number of files: 9 then, 8 now"):
        plan.make_plan(files[1:], jobs.TASK, out)
    with pytest.raises(plan.PlanError, match="block size: 4 then, 2 now"):
        plan.make_plan(files, jobs.TASK, out, block=2)
    assert plan.make_plan(files, jobs.TASK, out).record["block"] == 4
    files[0].write_text("changed", encoding="utf-8")
    with pytest.raises(plan.PlanError, match=r"another files \(names, sizes or times\)"):
        plan.make_plan(files, jobs.TASK, out)


def test_a_broken_part_is_named(files, tmp_path):
    out = tmp_path / "labels.parquet"
    jobs.label(files, out, shard=(0, 9))
    plan.make_plan(files, jobs.TASK, out).part(out, 0).write_bytes(b"nonsense")
    with pytest.raises(plan.PlanError, match=r"labels\.parquet: cannot join"):
        jobs.label(files, out)
    assert not out.exists()


def test_blocks_of_huge_hulls_are_simulated_in_pieces(files, undisturbed, tmp_path, monkeypatch):
    seen = []
    groups = job.rows.groups
    monkeypatch.setattr("sim_mjx.pieces.PIECE_BYTES", 30_000)
    monkeypatch.setattr(
        job.rows,
        "groups",
        lambda items, task: seen.append(len(items)) or groups(items, task),
    )
    out = tmp_path / "labels.parquet"
    assert jobs.label(files, out, block=len(files))
    assert len(seen) > 2
    assert sum(seen) == len(files)
    assert jobs.table(out).equals(undisturbed)


def test_progress_adds_up(files, undisturbed, tmp_path):
    seen, clock = collections.Counter(), job.Clock()
    jobs.label(
        files, tmp_path / "l.parquet", progress=lambda s, n: seen.update({s: n}), clock=clock
    )
    stable = undisturbed["stable"].to_pylist()
    assert seen["read"] == seen["drop"] == len(files)
    assert (seen["stable"], seen["unstable"]) == (stable.count(True), stable.count(False))
    assert seen["invalid"] == len(jobs.GARBAGE) == stable.count(None)
    assert clock.simulating > 0 < clock.finishing
    assert clock.compiling == 0


def test_strict_stops_at_the_first_bad_file(files, tmp_path):
    out = tmp_path / "labels.parquet"
    with pytest.raises(job.InvalidFileError, match=r"text\.obj.*not_a_mesh"):
        jobs.label(files, out, strict=True)
    assert not out.exists()
    good = [path for path in files if path.name[4:] not in jobs.GARBAGE]
    assert jobs.label(good, tmp_path / "good.parquet", strict=True)


def test_mjx_gives_the_same_bits_to_a_resumed_job(files, tmp_path):
    """The engine that computes many objects side by side: what they share slots with is no matter.

    Another size of block, shards and a resumed job: the same rows.
    """
    task = dataclasses.replace(jobs.TASK, engine=engines.resolve("mjx"))
    whole, out = tmp_path / "whole.parquet", tmp_path / "labels.parquet"
    assert jobs.label(files, whole, task, block=len(files))
    assert not jobs.label(files, out, task, block=3, shard=(1, 3))
    assert jobs.label(files, out, task, block=3)
    assert jobs.table(out).equals(jobs.table(whole))
    stable = jobs.table(whole)["stable"].to_pylist()
    assert {True, False} <= set(stable)


@pytest.mark.slow
def test_the_stock_step_gives_the_same_bits_to_a_resumed_job(files, tmp_path):
    """Its last bits depend on who shares the slots: blocks are dropped by themselves."""
    task = dataclasses.replace(jobs.TASK, engine=engines.resolve("mjx", "stock"))
    whole, out = tmp_path / "whole.parquet", tmp_path / "labels.parquet"
    assert jobs.label(files, whole, task, block=6)
    assert not jobs.label(files, out, task, block=6, shard=(1, 3))
    assert jobs.label(files, out, task, block=6)
    assert jobs.table(out).equals(jobs.table(whole))


def test_an_error_in_the_engine_ends_the_job(files, tmp_path):
    """While more waits for room than there is; what was complete by then is kept."""
    calls = []

    def broken(bodies, protocol, **options):
        calls.append(len(bodies))
        if len(calls) > 2:
            raise RuntimeError("the device is gone")
        return jobs.TASK.engine.call(bodies, protocol, **options)

    engine = dataclasses.replace(jobs.TASK.engine, call=broken)
    out = tmp_path / "labels.parquet"
    with pytest.raises(RuntimeError, match="device is gone"):
        jobs.label(files, out, dataclasses.replace(jobs.TASK, engine=engine), block=2)
    assert not out.exists()
    assert jobs.label(files, out, block=2)


def test_an_error_while_rows_are_made_ends_the_job(files, tmp_path, monkeypatch):
    """The reader waits for room that nobody gives back: it must not wait for ever."""

    def broken(*arguments):
        raise RuntimeError("no margin")

    monkeypatch.setattr("sim_mjx.margin.told_margin", broken)
    monkeypatch.setattr(pieces.Room.__init__, "__defaults__", (1,))
    with pytest.raises(RuntimeError, match="no margin"):
        jobs.label(files, tmp_path / "labels.parquet", block=2)


def test_bodies_in_memory_are_bounded(files, undisturbed, tmp_path, monkeypatch):
    """Room for one byte: the next group is put in when the one before has its rows."""
    open_at_once, inside = [], [0]
    take, give = pieces.Room.take, pieces.Room.give

    def counted_take(self, size):
        granted = take(self, size)
        inside[0] += 1
        open_at_once.append(inside[0])
        return granted

    def counted_give(self, size):
        inside[0] -= 1
        give(self, size)

    monkeypatch.setattr(pieces.Room, "take", counted_take)
    monkeypatch.setattr(pieces.Room, "give", counted_give)
    monkeypatch.setattr(pieces.Room.__init__, "__defaults__", (1,))
    out = tmp_path / "labels.parquet"
    assert jobs.label(files, out)
    assert max(open_at_once) == 1 < len(open_at_once)
    assert jobs.table(out).equals(undisturbed)
