"""The result of an evaluation: what is saved is what is read."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from dso_jax.errors import UsageError
from dso_jax.evaluation.result import CSV_NAME, JSON_NAME, Result


@pytest.fixture
def result() -> Result:
    """Three meshes, the last of them broken; the second was worse before."""
    text = {
        "path": ["a/stool, tall.glb", 'b/"odd"\nname.stl', "c/broken.obj"],
        "object": ["stool", "odd", "broken"],
        "category": ["seats", "", "seats"],
        "status": ["rest", "moving", "invalid"],
        "reason": ["", "", "not_a_mesh"],
    }
    numbers = {
        "tilt_deg": [0.1 + 0.2, 34.0, np.nan],
        "rotation_deg": [0.5, 1e-300, np.nan],
        "margin_deg": [12.0, 0.0, np.nan],
        "margin_mm": [40.0, 0.0, np.nan],
        "before_tilt_deg": [80.0, 90.0, 1.0],
    }
    columns = {
        **{name: np.array(values, object) for name, values in text.items()},
        **{name: np.array(values) for name, values in numbers.items()},
        "view": np.array([0, 0, 1]),
        "sample": np.array([1, 2, 3]),
        "stable": np.array([True, False, False]),
        "moving": np.array([False, True, False]),
    }
    poses = np.array([[0, 0, 0.5, 1, 0, 0, 0], [1, 2, 3, 0.6, 0.8, 0, 0], [np.nan] * 7])
    return Result(
        record={"command": "dso evaluate a b c", "device": None, "seconds": np.float64(1.5)},
        columns=columns,
        poses=poses,
        summary={"all": {"stable": {"value": 1 / 3, "low": 0.0, "high": math.nan}}},
        curves={"survival": {"theta": [0.01, 0.02], "value": [1.0, math.nan]}},
        engines={"mujoco": np.array([0.3, 35.0, np.nan])},
        before_poses=poses[::-1],
    )


def test_what_is_saved_is_read(result, tmp_path):
    result.save(tmp_path)
    read = Result.load(tmp_path)
    assert list(read.columns) == list(result.columns)
    for name, values in result.columns.items():
        np.testing.assert_array_equal(read.columns[name], values, strict=True, err_msg=name)
    np.testing.assert_array_equal(read.poses, result.poses)
    assert read.before_poses is not None
    np.testing.assert_array_equal(read.before_poses, result.before_poses)
    np.testing.assert_array_equal(read.engines["mujoco"], result.engines["mujoco"])
    assert read.record == {"command": "dso evaluate a b c", "device": None, "seconds": 1.5}
    assert read.summary["all"]["stable"] == {"value": 1 / 3, "low": 0.0, "high": None}


def test_the_files_are_for_other_programs_too(result, tmp_path):
    result.save(tmp_path)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((tmp_path / JSON_NAME).read_text(), parse_constant=refuse)
    assert content["curves"]["survival"]["value"] == [1.0, None]
    with (tmp_path / CSV_NAME).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["path"] == 'b/"odd"\nname.stl'
    assert rows[0]["tilt_deg"] == repr(0.1 + 0.2)
    assert rows[2]["tilt_deg"] == rows[2]["pose_qw"] == ""
    assert rows[2]["reason"] == "not_a_mesh"


def test_no_rows_are_a_result(result, tmp_path):
    none = Result({}, {n: v[:0] for n, v in result.columns.items()}, np.zeros((0, 7)))
    none.save(tmp_path)
    read = Result.load(tmp_path)
    assert len(read) == 0 and read.before_poses is None and read.poses.shape == (0, 7)


def test_rows_that_do_not_match_are_refused(result):
    with pytest.raises(ValueError, match="margin_mm"):
        columns = {n: v for n, v in result.columns.items() if n != "margin_mm"}
        dataclasses.replace(result, columns=columns)
    with pytest.raises(ValueError, match="cd"):
        dataclasses.replace(result, columns=result.columns | {"cd": np.zeros(2)})
    with pytest.raises(ValueError, match="poses"):
        dataclasses.replace(result, poses=np.zeros((3, 4)))


@pytest.mark.parametrize("change", ["absent", "other json", "torn table", "one row less"])
def test_a_folder_that_is_no_result_is_named(result, tmp_path, change):
    result.save(tmp_path)
    if change == "absent":
        (tmp_path / JSON_NAME).unlink()
    elif change == "other json":
        (tmp_path / JSON_NAME).write_text('{"version": 99}')
    else:
        text = (tmp_path / CSV_NAME).read_text()
        kept = text[:-60] if change == "torn table" else text[: text.rindex("c/broken")]
        (tmp_path / CSV_NAME).write_text(kept)
    with pytest.raises(UsageError, match=str(tmp_path)):
        Result.load(tmp_path)
