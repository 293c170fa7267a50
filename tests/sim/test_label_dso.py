"""DSO's own label files, as its trainer reads them."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sim_mjx import Protocol, dso_outputs
from sim_mjx.dso_outputs import Sample, float16_angles, write_object

EVAL = Protocol.preset("dso-eval")
NAN = float("nan")


def table_of(tmp_path, angles: dict[str, float | None]):
    """A table of labels with these rotations by path."""
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"path": list(angles), "rotation_deg": list(angles.values())}), path)
    return path


@pytest.fixture
def written(tmp_path):
    """A chair of two images, one with a failed mesh, a stool that always stands, a lone vase."""
    angles = {
        "data/seat/chair/000_000.glb": 1.0,
        "data/seat/chair/000_001.glb": None,
        "data/seat/chair/000_002.glb": 90.0,
        "data/seat/chair/007_000.glb": 19.999,
        "data/seat/chair/007_001.glb": 3.0,
        "data/seat/chair/007_002.glb": 5.0,
        "data/seat/chair/008_000.glb": 30.0,
        "data/seat/chair/008_002.glb": 1.0,
        "data/seat/stool/000_000.glb": 0.5,
        "data/seat/stool/000_001.glb": 0.5,
        "data/seat/stool/000_002.glb": 0.5,
        "data/pot/vase/130_000.glb": 200.0,
        "data/pot/vase/130_001.glb": 2.0,
        "data/pot/vase/130_002.glb": 20.0,
    }
    root = tmp_path / "out"
    assert dso_outputs.write(table_of(tmp_path, angles), root, EVAL) == 3
    return root


def test_files_of_each_object(written):
    files = sorted(str(p.relative_to(written)) for p in written.rglob("*") if p.is_file())
    assert files == [
        "pot/vase/130_angles.npy",
        "pot/vase/available_images.npy",
        "pot/vase/model_info.npz",
        "seat/chair/000_angles.npy",
        "seat/chair/007_angles.npy",
        "seat/chair/available_images.npy",
        "seat/chair/model_info.npz",
        "seat/stool/000_angles.npy",
    ]


def test_a_failed_mesh_costs_its_own_row(written):
    chair = written / "seat" / "chair"
    info = np.load(chair / "model_info.npz")
    pairs = list(zip(info["image_ids"].tolist(), info["glb_ids"].tolist(), strict=True))
    assert pairs == [(0, 0), (0, 2), (7, 0), (7, 1), (7, 2), (8, 0), (8, 2)]
    assert (info["image_ids"].dtype, info["angles"].dtype) == (np.int8, np.float16)
    assert info["angles"].shape == (7, 1)
    angles = np.load(chair / "000_angles.npy")
    assert (angles.shape, angles.dtype) == ((3, 1), np.float64)
    np.testing.assert_array_equal(angles[:, 0], [1.0, NAN, 90.0])
    # The reader's two questions; the failed mesh answers neither.
    assert np.flatnonzero(angles[:, 0] < 20).tolist() == [0]
    assert np.flatnonzero(angles[:, 0] >= 20).tolist() == [2]
    assert np.load(chair / "available_images.npy").tolist() == [0]
    assert np.load(chair / "available_images.npy").dtype == np.int64


def test_large_ids_do_not_wrap(written):
    info = np.load(written / "pot" / "vase" / "model_info.npz")
    assert info["image_ids"].tolist() == [130, 130, 130]
    assert np.load(written / "pot" / "vase" / "available_images.npy").tolist() == [130]


def test_half_precision_keeps_the_side():
    angles = np.array([19.999, 19.9999999, 20.0, 20.004, 0.0, 359.9, 19.98, 20.02])
    half = float16_angles(angles, 20.0)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half < 20, angles < 20)
    # Never farther than one step of half precision.
    assert (np.abs(half - angles) <= np.spacing(angles.astype(np.float16))).all()
    assert (angles.astype(np.float16)[:2] == 20).all()  # what a plain cast does


def test_stale_files_go(tmp_path):
    """An object that no longer has both labels keeps no file that says so."""
    mixed = [Sample(0, 0, 1.0), Sample(0, 1, 50.0)]
    write_object(tmp_path, mixed, 2, 20.0)
    assert len(list(tmp_path.iterdir())) == 3
    write_object(tmp_path, [Sample(0, 0, 1.0), Sample(0, 1, NAN)], 2, 20.0)
    assert [p.name for p in tmp_path.iterdir()] == ["000_angles.npy"]
    write_object(tmp_path, mixed[:1], 2, 20.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["chair/000_000.glb", "a/b/0_0.glb", "a/b/000_000.obj"])
def test_names_outside_the_layout(tmp_path, name):
    with pytest.raises(dso_outputs.OutputError, match=name):
        dso_outputs.write(table_of(tmp_path, {name: 1.0}), tmp_path, EVAL)
    assert [p.name for p in tmp_path.iterdir()] == ["labels.parquet"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "seat").write_text("a file", encoding="utf-8")
    table = table_of(tmp_path, {"seat/chair/000_000.glb": 1.0})
    with pytest.raises(dso_outputs.OutputError, match="seat"):
        dso_outputs.write(table, tmp_path, EVAL)
    shutil.rmtree(tmp_path)
