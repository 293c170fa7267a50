"""`dso label` on large jobs: shards, resumption, perturbed starts, DSO's files, what it shows."""

from __future__ import annotations

import collections
import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dso_jax.cli.label_monitor import Monitor
from dso_jax.cli.main import main
from sim_mjx import job, plan
from sim_mjx.task import PERTURBED, SCHEMA
from tests.sim import jobs, shapes

QUICK = ("--engine", "mujoco", "--protocol", "fast", "--workers", "0", "--block", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "meshes"
    jobs.crowd(path, 8)
    return path


def run(*arguments) -> int:
    return main(["label", *map(str, arguments)])


def test_shards_then_the_table(folder, tmp_path, capsys):
    whole, out = tmp_path / "whole.parquet", tmp_path / "labels.parquet"
    assert run(folder, "--out", whole, *QUICK) == 0
    assert run(folder, "--out", out, *QUICK, "--shard", "1/2") == 0
    said = capsys.readouterr().err
    assert not out.exists()
    assert "appears with the last shard" in " ".join(said.split())
    assert run(folder, "--out", out, *QUICK, "--shard", "0/2") == 0
    assert pq.read_table(out).equals(pq.read_table(whole))
    assert run(folder, "--out", out, *QUICK) == 0
    assert "complete already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launcher", "share"),
    [
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, (1, 4)),
        ({"JAX_PROCESS_ID": "2", "JAX_NUM_PROCESSES": "3", "SLURM_PROCID": "0"}, (2, 3)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "5",
                "SLURM_ARRAY_TASK_COUNT": "9",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
            },
            (2, 9),
        ),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, (0, 1)),
    ],
)
def test_the_launcher_says_which_shard(folder, tmp_path, monkeypatch, launcher, share):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    seen = []
    monkeypatch.setattr(job, "run", lambda *_, shard, **__: seen.append(shard) or False)
    assert run(folder, "--out", tmp_path / "l.parquet", *QUICK, "--shard", "auto") == 0
    assert seen == [share]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "4/4"], "0 <= I < N"),
        (["--shard", "one"], "I/N"),
        (["--shard", "auto"], "no launcher"),
        (["--shard", "0/2", "--overwrite"], "other shards"),
        (["--perturb", "0"], "theta"),
        (["--perturb", "0.1", "--starts", "0"], "starts"),
        (["--perturb", "0.1", "--seed", "-3"], "seed"),
        (["--workers", "-1"], "zero or more"),
        (["--workers", "many"], "many"),
        (["--block", "0"], "at least 1"),
        (["--mjx-step", "fast"], "slim"),
        (["--dso-outputs", "FOLDER"], "CATEGORY/OBJECT"),
        (["--cache", "/proc/bodies"], "cache /proc/bodies"),
    ],
)
def test_bad_options_stop_before_any_work(
    folder, tmp_path, capsys, monkeypatch, arguments, message
):
    for name in ("JAX_PROCESS_ID", "SLURM_ARRAY_TASK_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(job, "run", None)  # calling it would be an error of its own
    assert run(folder, "--out", tmp_path / "labels.parquet", *QUICK, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: label: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_job_is_refused_in_one_line(folder, tmp_path, capsys):
    out = tmp_path / "labels.parquet"
    assert run(folder, "--out", out, *QUICK, "--shard", "0/9") == 0
    capsys.readouterr()
    assert run(folder, "--out", out, *QUICK, "--protocol", "dso-eval") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(r"another protocol: timestep 0\.002 then, timestep 0\.001 now", error)
    assert run(folder, "--out", out, *QUICK, "--protocol", "dso-eval", "--overwrite") == 0
    assert set(pq.read_table(out)["protocol"].to_pylist()) == {shapes.EVAL.hash()}


def test_an_interrupted_job_says_how_to_go_on(folder, tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", interrupted)
    assert run(folder, "--out", tmp_path / "labels.parquet", *QUICK) == 130
    assert "the same command goes on" in " ".join(capsys.readouterr().err.split())
    assert [p.name for p in tmp_path.iterdir()] == ["labels.parquet.parts"]


def test_strict_leaves_nothing(folder, tmp_path, capsys):
    out = tmp_path / "labels.parquet"
    assert run(folder, "--out", out, *QUICK, "--strict") == 2
    assert "--strict" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_perturbed_starts_add_columns(folder, tmp_path):
    plain, out = tmp_path / "plain.parquet", tmp_path / "labels.parquet"
    good = sorted(folder.glob("*-t*el3.obj"))[:1] + sorted(folder.glob("*lantern.obj"))[:1]
    assert run(*good, "--out", plain, *QUICK) == 0
    assert run(*good, "--out", out, *QUICK, "--perturb", "0.02", "--starts", "6") == 0
    table = pq.read_table(out)
    assert table.schema.names == SCHEMA.names + PERTURBED.names
    assert table.select(SCHEMA.names).equals(pq.read_table(plain))
    towel, lantern = table.to_pylist()
    assert (towel["survival"], lantern["survival"]) == (0.0, 1.0)
    assert towel["starts"] == lantern["starts"] == 6
    assert towel["tip_agreement"] > 0.9
    assert lantern["tip_direction_deg"] is None


def test_dso_s_files_beside_the_table(tmp_path, capsys):
    # Named GLB as the layout wants; the contents decide what is stable.
    home = tmp_path / "data" / "garden" / "things"
    home.mkdir(parents=True)
    for number, name in enumerate(("lantern", "towel3")):
        mesh = shapes.trimesh.load_mesh(shapes.mesh_path(name))
        mesh.export(home / f"003_{number:03d}.glb")
    out = tmp_path / "labels.parquet"
    assert run(home, "--out", out, *QUICK, "--dso-outputs", tmp_path / "data") == 0
    assert "1 objects" in capsys.readouterr().out
    info = np.load(home / "model_info.npz")
    assert info["image_ids"].tolist() == [3, 3]
    assert (info["angles"][:, 0] < 20).tolist() == [True, False]
    assert np.load(home / "available_images.npy").tolist() == [3]
    rotations = pq.read_table(out)["rotation_deg"].to_pylist()
    assert np.load(home / "003_angles.npy")[:, 0].tolist() == rotations


def test_the_monitor_says_rates_and_shares(caplog):
    now = iter(range(0, 1000, 10))
    monitor = Monitor(Console(file=io.StringIO()), 8, clock=lambda: float(next(now)))
    with caplog.at_level("INFO"), monitor:
        monitor("read", 4)
        monitor("drop", 4)
        counts = {"stable": 2, "unstable": 1, "moving": 1, "invalid": 1}
        for stage, count in counts.items():
            monitor(stage, count)
    assert "stable 66.7 %, moving 25.0 %, invalid 25.0 %" in monitor.shares()
    assert re.fullmatch(r"0\.0 labels/s, \d+ min \d\d s left", monitor.rate())
    assert any("4 of 8 files" in record.message for record in caplog.records)
    assert monitor.counts == collections.Counter(counts) + collections.Counter(read=4, drop=4)


def test_parts_stand_beside_the_table(tmp_path):
    assert plan.folder(tmp_path / "a.parquet") == tmp_path / "a.parquet.parts"


def test_dso_s_files_that_cannot_be_written_are_one_line(tmp_path, capsys):
    home = tmp_path / "garden" / "things"
    home.mkdir(parents=True)
    (home / "000_000.glb").write_bytes(b"nonsense")
    shapes.trimesh.load_mesh(shapes.mesh_path("lantern")).export(home / "000_001.glb")
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    out = tmp_path / "labels.parquet"
    assert run(home, "--out", out, *QUICK, "--dso-outputs", tmp_path / "taken") == 2
    assert "taken" in capsys.readouterr().err.splitlines()[-1]
    assert out.exists()  # the labels are none the worse


def test_bodies_are_kept_for_another_engine(folder, tmp_path, monkeypatch):
    """A second protocol over the same meshes reads no mesh."""
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    kept = ("--cache", tmp_path / "bodies")
    assert run(folder, "--out", first, *QUICK, *kept) == 0
    monkeypatch.setattr("sim_mjx.meshes.mesh_from_bytes", None)  # calling it would be an error
    assert run(folder, "--out", second, *QUICK, *kept, "--protocol", "dso-eval") == 0
    a, b = pq.read_table(first), pq.read_table(second)
    assert a["mass"].equals(b["mass"])
    assert a["reason"].equals(b["reason"])
    assert a["protocol"][0] != b["protocol"][0]
