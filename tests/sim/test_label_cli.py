"""`dso label`: rows, reasons, exit codes, and no work or file on bad arguments."""

from __future__ import annotations

import json
import os
import re
import shutil

import pyarrow.parquet as pq
import pytest

from dso_jax.cli.main import main
from sim_mjx import label, referee_one
from tests.sim import shapes


@pytest.fixture
def folder(tmp_path):
    """Two good meshes, one in a folder below, and three files that cannot be labelled."""
    meshes = tmp_path / "meshes"
    (meshes / "deep").mkdir(parents=True)
    shutil.copy(shapes.mesh_path("towel3"), meshes / "towel.obj")
    shutil.copy(shapes.mesh_path("lantern"), meshes / "deep" / "lantern.obj")
    (meshes / "text.obj").write_text("hello", encoding="utf-8")
    (meshes / "empty.stl").touch()
    (meshes / "notes.txt").write_text("not a mesh format", encoding="utf-8")
    return meshes


def run(*arguments) -> int:
    return main(["label", *map(str, arguments)])


def test_labels_what_can_be_labelled(folder, tmp_path, capsys):
    out = tmp_path / "labels.parquet"
    assert run(folder, "--out", out) == 0
    table = pq.read_table(out)
    assert table.schema.equals(label.SCHEMA)
    rows = {os.path.basename(row["path"]): row for row in table.to_pylist()}
    assert set(rows) == {"towel.obj", "lantern.obj", "text.obj", "empty.stl"}
    lantern, towel = rows["lantern.obj"], rows["towel.obj"]
    assert (lantern["stable"], lantern["status"]) == (True, "rest")
    assert (towel["stable"], towel["status"]) == (False, "rest")
    assert towel["tilt_deg"] > 60
    assert lantern["margin_deg"] > 5
    assert rows["text.obj"]["reason"] == "not_a_mesh"
    assert rows["empty.stl"]["reason"] == "empty"
    for name in ("text.obj", "empty.stl"):
        row = rows[name]
        assert (row["status"], row["stable"], row["tilt_deg"]) == ("invalid", None, None)
    for row in rows.values():
        assert len(row["sha256"]) == 64
        assert row["protocol"] == shapes.EVAL.hash()
        assert row["engine"] == "mjx"
        assert "3.17" in row["engine_version"]
        assert row["device"]
    stored = json.loads(table.schema.metadata[b"protocol"])
    assert stored == shapes.EVAL.to_dict()
    said = capsys.readouterr().err
    assert "stable" in said
    assert shapes.EVAL.hash() in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.parquet", "meshes"]


def test_engine_globs_and_options(folder, tmp_path):
    out = tmp_path / "c.parquet"
    pattern = folder / "**" / "*.obj"
    options = ("--engine", "mujoco", "--protocol", "fast", "--up", "y")
    assert run(pattern, folder / "towel.obj", "--out", out, *options) == 0
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 3  # the towel is named twice, and labelled once
    assert {row["engine"] for row in rows} == {"mujoco"}
    assert {row["engine_version"] for row in rows} == {"4.0.0"}
    assert sorted(str(row["stable"]) for row in rows) == ["False", "None", "True"]
    assert rows[0]["protocol"] != shapes.EVAL.hash()


def test_strict_writes_nothing(folder, tmp_path, capsys):
    out = tmp_path / "labels.parquet"
    out.write_bytes(b"before")
    assert run(folder, "--out", out, "--strict", "--engine", "mujoco") == 2
    assert out.read_bytes() == b"before"
    assert "--strict" in capsys.readouterr().err
    good = tmp_path / "good.parquet"
    assert run(folder / "towel.obj", "--out", good, "--strict", "--engine", "mujoco") == 0
    assert good.exists()


def test_nothing_labelled_is_an_error(folder, tmp_path, capsys):
    out = tmp_path / "labels.parquet"
    assert run(folder / "text.obj", folder / "empty.stl", "--out", out) == 2
    assert "none of 2" in capsys.readouterr().err
    assert {row["reason"] for row in pq.read_table(out).to_pylist()} == {"not_a_mesh", "empty"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MESHES/absent.obj", "--out", "OUT.parquet"], "absent.obj"),
        (["MESHES/*.glb", "--out", "OUT.parquet"], r"\*.glb"),
        (["EMPTY", "--out", "OUT.parquet"], "no mesh file"),
        (["MESHES", "--out", "OUT.csv"], ".parquet"),
        (["MESHES", "--out", "EMPTY/absent/x.parquet"], "absent"),
        (["MESHES", "--out", "FOLDER.parquet"], "is a folder"),
        (["MESHES", "--out", "/proc/x.parquet"], "/proc/x.parquet"),
        (["MESHES", "--out", "OUT.parquet", "--protocol", "quick"], "quick.*dso-eval"),
        (["MESHES", "--out", "OUT.parquet", "--protocol", "BAD.yaml"], "timestp"),
        (["MESHES", "--out", "OUT.parquet", "--engine", "bullet"], "bullet"),
        (["MESHES", "--out", "OUT.parquet", "--fast"], "--fast"),
        (["MESHES"], "--out"),
        ([], "PATHS|--out"),
    ],
)
def test_bad_arguments_stop_before_any_work(
    folder, tmp_path, capsys, monkeypatch, arguments, message
):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FOLDER.parquet").mkdir()
    (tmp_path / "BAD.yaml").write_text("timestp: 1", encoding="utf-8")
    monkeypatch.setattr(label, "label_files", None)  # calling it would be an error of its own
    before = sorted(tmp_path.rglob("*"))
    names = {"MESHES": folder, "EMPTY": tmp_path / "EMPTY", "OUT": tmp_path / "OUT"}
    names |= {"FOLDER": tmp_path / "FOLDER", "BAD": tmp_path / "BAD"}
    resolved = [_resolve(argument, names) for argument in arguments]
    assert run(*resolved) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert sorted(tmp_path.rglob("*")) == before


def _resolve(argument, names):
    for name, path in names.items():
        if argument.startswith(name):
            return str(path) + argument.removeprefix(name)
    return argument


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("dso-eval", "exit codes", "margin_deg", "examples", "--strict"):
        assert word in text


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    out = tmp_path / "labels.parquet"
    out.write_bytes(b"before")
    table = label.label_files([], shapes.EVAL, engine="mujoco")

    def full(table, where):
        where.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(label.pq, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        label.write_labels(table, out)
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.usefixtures("no_workers_yet")
def test_referee_refusals_are_rows(monkeypatch, tmp_path):
    def refuse(*arguments):
        raise ValueError("mesh volume is too small")

    monkeypatch.setattr(referee_one, "compile_model", refuse)
    table = label.label_files([shapes.mesh_path("towel3")], shapes.EVAL, engine="mujoco")
    row = table.to_pylist()[0]
    assert (row["status"], row["reason"], row["stable"]) == ("invalid", "mujoco_rejects", None)
