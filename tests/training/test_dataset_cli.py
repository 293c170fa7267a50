"""`dso dataset`: what it prints and how it ends; the folders themselves have tests of their own."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from dso_jax.cli import dataset_tables
from dso_jax.cli.main import main
from dso_jax.dataset.store import Dataset
from tests.training import dso_files
from tests.training.dso_files import files


@pytest.fixture
def source(tmp_path):
    return dso_files.make(tmp_path / "dso")


def run(capsys, *words) -> tuple[int, str, str]:
    code = main(["dataset", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_teaches_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("stats", "validate", "import-dso", "export-dso", "merge"):
        assert f"dso dataset {name}" in out
        with pytest.raises(SystemExit) as ended:
            main(["dataset", name, "--help"])
        assert ended.value.code == 0
        assert f"usage: dso dataset {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["look"], "error: dataset look: expected one of stats, validate, import-dso, export-dso"),
        (["stats"], "error: dataset stats: .*FOLDER.* (see dso dataset stats --help)"),
        (["import-dso", "x"], "error: dataset import-dso: .*--out"),
        (["stats", "nowhere"], "error: nowhere: no such dataset folder"),
        (["validate", "nowhere"], "error: nowhere: no such dataset folder"),
        (["import-dso", "nowhere", "--out", "x"], "error: nowhere: no such folder"),
        (["export-dso", "nowhere", "--out", "x"], "error: nowhere: no such dataset folder"),
        (["merge", "nowhere", "--out", "x"], "error: nowhere: no such dataset folder"),
    ],
)
def test_unusable_arguments_are_one_line(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    start, _, end = message.partition(".*")
    assert (code, out) == (2, "") and err.startswith(start) and end.partition(".*")[0] in err
    assert err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_in_and_out_and_in(capsys, source, tmp_path):
    code, out, _ = run(capsys, "import-dso", source, "--out", tmp_path / "ours")
    assert code == 0
    assert "15 samples: IMG_angles.npy" in out and "2 samples: model_info.npz" in out
    assert "with both labels" in out
    code, out, _ = run(capsys, "export-dso", tmp_path / "ours", "--out", tmp_path / "theirs")
    assert code == 0
    assert "17 samples of 3 objects" in out
    assert "2 have both labels, and DSO's loader draws from 2" in out and "rounded" not in out
    code, _, _ = run(capsys, "import-dso", tmp_path / "theirs", "--out", tmp_path / "back")
    assert code == 0 and files(tmp_path / "back") == files(tmp_path / "ours")


def test_bad_files_are_named_while_the_rest_goes_on(capsys, caplog, source, tmp_path):
    bad = source / "animal/cat/000_sparse_sample_001.pt"
    bad.write_bytes(b"")
    code, out, _ = run(capsys, "import-dso", source, "--out", tmp_path / "ours")
    assert code == 0 and f"{bad}: the file is empty" in caplog.text
    assert "1 problems were named above" in out and len(Dataset(tmp_path / "ours")) == 16
    code, _, err = run(capsys, "import-dso", source, "--out", tmp_path / "strict", "--strict")
    assert code == 2 and err.splitlines()[-1].startswith(f"error: --strict: {bad}: the file is")
    assert not list((tmp_path / "strict").iterdir())


def test_stats_as_a_picture_and_as_json(capsys, dataset_folder):
    code, out, _ = run(capsys, "stats", dataset_folder)
    assert code == 0
    assert "24 usable pairs" in out and "50.0 % of the labelled" in out
    assert sum("█" in line for line in out.splitlines()) == 2  # 12 at 1 degree, 12 at 80
    code, out, _ = run(capsys, "stats", dataset_folder, "--json")
    figures = json.loads(out)
    assert code == 0 and (figures["objects"], figures["usable_pairs"]) == (6, 24)
    assert figures["histogram"]["2"] == figures["histogram"]["90"] == 12


def test_validate_names_everything_and_fails(capsys, dataset_folder, tmp_path):
    code, out, _ = run(capsys, "validate", dataset_folder)
    assert code == 0 and out.endswith("24 samples, nothing is wrong\n")
    folder = shutil.copytree(dataset_folder, tmp_path / "data")
    shutil.copy(folder / "latents-00000.safetensors", folder / "latents-00001.safetensors")
    (folder / "latents-00000.safetensors").unlink()
    (folder / "conditions-00000.safetensors").write_bytes(b"")
    code, out, err = run(capsys, "validate", folder)
    assert code == 2 and err == f"error: {folder}: 2 problems, named above\n"
    assert [line.partition(":")[0] for line in out.splitlines()] == ["wrong", "wrong", "note"]
    code, out, _ = run(capsys, "validate", folder, "--json")
    assert code == 2 and len(json.loads(out)["problems"]) == 2


def test_progress_is_a_bar_or_lines_now_and_then(capsys, caplog, source, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_tables, "LOG_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    run(capsys, "import-dso", source, "--out", tmp_path / "a")
    assert re.search(r"import: 17 of 17 samples, \d+ samples/s", caplog.text)
    (source / "animal/cat/001_cond.pt").write_bytes(b"")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal then
    _, _, err = run(capsys, "import-dso", source, "--out", tmp_path / "b")
    assert "001_cond.pt: the file is empty" in err and "17/17" in err and "━" in err


def test_merge_shows_what_came_out(capsys, source, tmp_path):
    run(capsys, "import-dso", source, "--out", tmp_path / "a")
    other = dso_files.make(tmp_path / "more", {"new/one": {0: [1.0, 30.0]}})
    run(capsys, "import-dso", other, "--out", tmp_path / "b")
    code, out, _ = run(capsys, "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert code == 0 and len(Dataset(tmp_path / "c")) == 19
    assert re.search(r"^ samples +19 ", out, re.MULTILINE)


KILLED = """
import os, signal, sys
from dso_jax import atomic
from dso_jax.dso_folder import plan as dso_folder_plan
from dso_jax.cli.main import main

dso_folder_plan.SHARD_BYTES = 1200
moment, files, fsync = int(sys.argv[1]), [], os.fsync

def killed(file):
    fsync(file)
    files.append(file)
    if len(files) == moment:
        os.kill(os.getpid(), signal.SIGKILL)

atomic.os.fsync = killed
sys.exit(main(["dataset", "import-dso", *sys.argv[2:]]))
"""


@pytest.mark.slow
def test_sigkill_and_again_gives_the_same_folder(source, tmp_path):
    """The process really dies, a file half in place, several times; the last start finishes."""

    def start(moment, out):
        command = [sys.executable, "-c", KILLED, str(moment), str(source), "--out", str(out)]
        return subprocess.run(command, capture_output=True, timeout=120, env=os.environ).returncode

    assert start(0, tmp_path / "undisturbed") == 0
    for moment in (3, 5):
        assert start(moment, tmp_path / "ours") == -signal.SIGKILL
        assert list((tmp_path / "ours").glob(".*.tmp"))
    assert start(0, tmp_path / "ours") == 0
    assert files(tmp_path / "ours") == files(tmp_path / "undisturbed")
