"""`dso evaluate` on mesh files, from the command line to the tables."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from dso_jax.cli import evaluate as command
from dso_jax.errors import UsageError
from dso_jax.evaluation.files import Bench
from dso_jax.evaluation.result import Result
from tests.sim import shapes

FAST = ("--workers", "0", "--engines", "mujoco")


def box(path, sides, shear=0.0):
    """A box as an OBJ file, z up; a sheared one leans along x."""
    mesh = shapes.box(*sides)
    vertices = np.asarray(mesh.vertices)
    vertices[:, 0] += shear * vertices[:, 2]
    mesh.vertices = vertices
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.export(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two pictures of a tower and two samples of each, tuned and base; and what is true."""
    root = tmp_path_factory.mktemp("evaluate")
    for name, shear in {"000_000": 0.0, "000_001": 1.2, "001_000": 0.1, "001_001": 1.3}.items():
        box(root / "base" / f"tower-{name}.stl", (0.3, 0.3, 1.0), shear)
        # After training it stands, for it has been flattened.
        box(root / "tuned" / f"tower-{name}.stl", (0.3, 0.3, 0.15))
    (root / "tuned" / "tower-001_001.stl").write_bytes(b"not a mesh at all")
    box(root / "true" / "tower.stl", (0.3, 0.3, 1.0))
    return root


@pytest.fixture(scope="module")
def result(folders):
    arguments = [str(folders / "tuned"), "--before", str(folders / "base")]
    arguments += ["--truth", str(folders / "true"), "--perturb", "0.05,0.4", "--starts", "4"]
    arguments += ["--engines", "mujoco,legacy", "--baselines", "cut-0.1,best-of-n"]
    arguments += ["--workers", "0", "--out", str(folders / "out")]
    assert command.main(arguments) == 0
    return Result.load(folders / "out")


def test_a_broken_file_is_a_row(result):
    assert len(result) == 4
    assert result.columns["status"].tolist() == ["rest"] * 3 + ["invalid"]
    assert result.columns["reason"][3] in result.summary["reasons"]
    found = result.summary["all"]
    assert found["output"]["value"] == 0.75
    assert (found["stable"]["value"], found["stable_of_all"]["value"]) == (1.0, 0.75)
    assert found["tilt_deg"]["value"] < 1


def test_before_and_change(result):
    assert result.summary["before"]["stable"]["value"] == 0.5
    # Paired: of the three that came out, one fell before.
    assert result.summary["change"]["stable"]["value"] == pytest.approx(1 / 3)
    assert result.columns["before_stable"].tolist() == [True, False, True, False]
    assert result.columns["before_tilt_deg"][1] > 20
    assert np.isfinite(result.before_poses).all() and np.isnan(result.poses[3]).all()


def test_a_cheat_is_suspect(result):
    verdict = result.summary["verdict"]
    assert verdict["ok"] is False
    assert {"height", "empty"} <= set(verdict["suspects"])
    assert "height" in result.columns["guards"][0] and result.columns["guards"][3] == "empty"
    # What leaned was as low for its width before, and has only lost volume; one is not there.
    assert verdict["guards"]["height"]["share"] == 0.5


def test_distance_to_the_truth_tells_the_price(result):
    found = result.summary
    assert found["before"]["f_score"]["value"] > found["all"]["f_score"]["value"]
    assert result.columns["before_cd"][0] == pytest.approx(result.columns["cd_floor"][0], rel=0.2)
    assert np.isnan(result.columns["cd"][3])
    assert result.columns["geometry_reason"][3] == result.columns["reason"][3]


def test_survival_falls_with_the_angle(result):
    curve = result.curves["survival_before"]
    assert curve["theta"] == [0.0, 0.05, 0.4]
    assert curve["value"][0] == curve["value"][1] == 0.5 > curve["value"][2]
    assert result.curves["survival"]["value"][1] == 1.0


def test_baselines_change_the_meshes_before_training(result):
    tables = result.summary["baselines"]
    assert list(tables) == ["as it is", "cut-0.1", "best of 1", "best of 2", "after training"]
    assert tables["as it is"]["stable"]["value"] == 0.5
    assert tables["best of 1"]["stable"]["value"] == 1.0  # the first samples stand
    assert tables["cut-0.1"]["output"]["value"] == 1.0
    assert tables["cut-0.1"]["cd"]["value"] > tables["as it is"]["cd"]["value"]


def test_engines_are_compared(result):
    found = result.summary["engines"]["legacy"]
    assert (found["meshes"], found["stand_stand"]) == (3, 3)
    assert found["protocol"] != result.record["protocol"]["hash"]
    assert result.engines["legacy"].shape == (4,)


def test_files_say_how_they_were_made(folders, result):
    record = json.loads((folders / "out" / "results.json").read_text("utf-8"))["record"]
    assert record["command"].startswith("dso evaluate ")
    assert record["engine"]["engine"] == "mujoco" and record["versions"]["mujoco"]
    assert record["inputs"]["with_before"] == 4
    with (folders / "out" / "results.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert not (folders / "out" / "parts").exists()
    page = (folders / "out" / "report.html").read_text("utf-8")
    assert "tower" in page and record["protocol"]["hash"] in page


def test_a_stopped_evaluation_goes_on(folders, tmp_path, monkeypatch):
    arguments = [str(folders / "base"), *FAST, "--out", str(tmp_path / "out")]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Bench, "shapes", stop)
        command.main(arguments)
    assert not (tmp_path / "out" / "results.json").exists()
    monkeypatch.setattr("dso_jax.evaluation.files.prepare", stop)  # all drops are done
    assert command.main(arguments) == 0
    assert Result.load(tmp_path / "out").columns["stable"].tolist() == [True, False, True, False]


def test_categories_have_tables(folders, tmp_path):
    shutil.copytree(folders / "base", tmp_path / "in" / "low")
    shutil.copytree(folders / "true", tmp_path / "in" / "high")
    arguments = [str(tmp_path / "in"), *FAST, "--no-shapes", "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    found = Result.load(tmp_path / "out").summary
    assert list(found["categories"]) == ["low", "high"]
    assert found["categories"]["low"]["stable"]["value"] == 0.5
    assert found["verdict"]["judged"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent: no such file"),
        (["tuned", "--protocol", "odd"], "protocol 'odd'"),
        (["tuned", "--engines", "bullet"], "'bullet' is not one of mjx, mujoco"),
        (["tuned", "--perturb", "0.1,0"], "expected different angles between 0 and pi"),
        (["tuned", "--baselines", "cut-0.3"], "'cut-0.3' is not one of cut-0.05"),
        (["true", "--baselines", "best-of-n", "--engines", "mujoco"], "every picture has one samp"),
        (["tuned", "--checkpoints", "all"], "--checkpoints is for a run folder"),
    ],
)
def test_what_cannot_be_used_is_said_before_work(folders, tmp_path, arguments, message):
    first, *rest = arguments
    with pytest.raises(UsageError, match=message):
        command.main([str(folders / first), *rest, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_output_folder_of_something_else_is_refused(folders, tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UsageError, match=r"holds thesis.tex, which is no evaluation's"):
        command.main([str(folders / "true"), "--out", str(tmp_path)])
    with pytest.raises(UsageError, match="no folder"):
        command.main([str(folders / "true"), "--out", str(tmp_path / "a" / "b")])


def test_nothing_usable_and_strict_are_errors(folders, tmp_path):
    (tmp_path / "a.obj").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="none of 1 meshes could be simulated"):
        command.main([str(tmp_path / "a.obj"), *FAST, "--out", str(tmp_path / "out")])
    arguments = [str(folders / "tuned"), *FAST, "--strict", "--out", str(tmp_path / "out")]
    with pytest.raises(UsageError, match=r"--strict: .*001_001.stl cannot be simulated"):
        command.main(arguments)
    assert not (tmp_path / "out" / "results.json").exists()
