"""The dataset folder: whole or not at all, and refused by name when it is broken."""

from __future__ import annotations

import json
import os
import shutil
import threading

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dso_jax import atomic
from dso_jax.dataset import shards, store
from dso_jax.dataset import writer as dataset_writer
from dso_jax.dataset.check import check
from dso_jax.dataset.samples import SCHEMA, write_samples
from dso_jax.dataset.store import Dataset
from dso_jax.dataset.writer import DatasetWriter
from dso_jax.errors import UsageError
from tests.training.conftest import labels


@pytest.fixture
def folder(dataset_folder, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(dataset_folder, tmp_path / "data")


def arrays(n: int, dtype=np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    latents = rng.normal(size=(n, 2, 4, 4, 4)).astype(dtype)
    return latents, rng.normal(size=(n, 3, 8)).astype(dtype)


def part(first: int, last: int) -> dict[str, np.ndarray]:
    """Columns of the samples first..last - 1 of a larger table, with a condition each."""
    columns = {name: values[first:last] for name, values in labels(8, 2).items()}
    return columns | {"condition_row": np.arange(last - first)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_written_is_read_back(tmp_path, dtype):
    latents, conditions = arrays(4, dtype)
    DatasetWriter(tmp_path, {"base": "b"}).append(part(0, 4), latents, conditions)
    dataset = Dataset(tmp_path)
    assert len(dataset) == 4 and dataset.meta["base"] == "b"
    for i in range(4):
        assert dataset.latent(i).dtype == dtype
        np.testing.assert_array_equal(dataset.latent(i), latents[i])
        np.testing.assert_array_equal(dataset.condition(i), conditions[i])
    assert dataset.samples["object"].tolist() == part(0, 4)["object"].tolist()


def test_a_second_writer_goes_on_behind_the_first(tmp_path):
    first, second = arrays(4), arrays(3)
    DatasetWriter(tmp_path, {"shape": (1, 2)}).append(part(0, 4), *first)
    before = (tmp_path / "latents-00000.safetensors").read_bytes()
    writer = DatasetWriter(tmp_path, {"shape": (1, 2)})
    assert len(writer) == 4 and ("object-00", 0, 1) in writer.keys
    writer.append(part(4, 7), *second)
    dataset = Dataset(tmp_path)
    assert dataset.samples["shard"].tolist() == [0] * 4 + [1] * 3
    np.testing.assert_array_equal(dataset.latent(5), second[0][1])
    assert (tmp_path / "latents-00000.safetensors").read_bytes() == before


def test_a_kill_between_shard_and_table_loses_only_that_append(tmp_path, monkeypatch):
    DatasetWriter(tmp_path, {}).append(part(0, 4), *arrays(4))

    def die(path, columns):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset_writer, "write_samples", die)
        DatasetWriter(tmp_path, {}).append(part(4, 7), *arrays(3))
    assert len(Dataset(tmp_path)) == 4
    latents, conditions = arrays(2)
    DatasetWriter(tmp_path, {}).append(part(4, 6), latents, conditions)
    np.testing.assert_array_equal(Dataset(tmp_path).latent(5), latents[1])


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path):
    DatasetWriter(tmp_path, {}).append(part(0, 4), *arrays(4))
    before = sorted(tmp_path.iterdir())
    for name in (".latents-00001.safetensors-x1.tmp", ".tmpAb3"):
        (tmp_path / name).write_bytes(b"half")
    DatasetWriter(tmp_path, {})
    assert sorted(tmp_path.iterdir()) == before


def test_writers_side_by_side_share_nothing(tmp_path):
    """Each knows its own shards; what they add is one table, in parts or put together."""
    meta = {"base": "b", "latent_shape": [2, 4, 4, 4], "condition_shape": [3, 8]}
    first = DatasetWriter(tmp_path, meta)
    second = DatasetWriter(tmp_path, meta)
    assert first.alone and not second.alone
    (tmp_path / ".latents-00001.safetensors-x1.tmp").write_bytes(b"the first one is at this")
    second.append(part(4, 7), *arrays(3), shard=1)
    first.append(part(0, 4), *arrays(4), shard=0)
    assert first.shards() == second.shards() == {0, 1}
    before = Dataset(tmp_path)
    assert before.samples["seed"].tolist() == list(range(7))
    second.finish()
    first.finish()
    after = Dataset(tmp_path)
    assert after.fingerprint == before.fingerprint
    assert not list(tmp_path.glob("samples-*")) and list(tmp_path.glob(".*.tmp"))
    del first, second
    DatasetWriter(tmp_path, meta)
    assert not list(tmp_path.glob(".*.tmp"))
    with pytest.raises(UsageError, match=r"base is 'b', this run has 'c'"):
        DatasetWriter(tmp_path, meta | {"base": "c"})


def test_who_comes_while_the_first_clears_waits(tmp_path, monkeypatch):
    """Or the first would remove the file that the second is writing."""
    clear, came = DatasetWriter._clear, []
    second = threading.Thread(
        target=lambda: came.append(DatasetWriter(tmp_path, {"latent_shape": [2, 4, 4, 4]})),
        daemon=True,
    )

    def meanwhile(writer):
        second.start()
        second.join(0.3)
        assert not came
        clear(writer)

    monkeypatch.setattr(DatasetWriter, "_clear", meanwhile)
    first = DatasetWriter(tmp_path, {"latent_shape": [2, 4, 4, 4]})
    second.join(30)
    assert first.alone and [one.alone for one in came] == [False]


def test_a_writer_that_is_refused_keeps_nobody_waiting(tmp_path):
    DatasetWriter(tmp_path, {"base": "b"}).append(part(0, 4), *arrays(4))
    with pytest.raises(UsageError, match="base") as refused:
        DatasetWriter(tmp_path, {"base": "c"})
    assert len(DatasetWriter(tmp_path, {"base": "b"})) == 4, refused


def test_samples_that_wait_for_labels_are_not_seen(tmp_path):
    latents, conditions = arrays(4)
    writer = DatasetWriter(tmp_path, {})
    lines = writer.append(part(0, 4), latents, conditions, shard=3, labelled=False)
    with pytest.raises(UsageError, match=r"samples.parquet: no such file"):
        Dataset(tmp_path)
    assert list(writer.unlabelled()) == [3] and not writer.shards()
    writer.label(3, lines | {"tilt_deg": [7.0] * 4})
    assert Dataset(tmp_path).samples["tilt_deg"].tolist() == [7.0] * 4
    assert not writer.unlabelled() and not list(tmp_path.glob("unlabelled-*"))


def test_a_shard_without_samples_is_remembered(tmp_path):
    writer = DatasetWriter(tmp_path, {})
    writer.append(part(0, 4), *arrays(4))
    writer.label(1, {name: [] for name in SCHEMA.names})
    writer.finish()
    assert DatasetWriter(tmp_path, {}).shards() == {0, 1} and len(Dataset(tmp_path)) == 4


def test_the_whole_table_stands_before_a_part_of_it(tmp_path):
    """So that labels are replaced at once, also while others still append."""
    writer = DatasetWriter(tmp_path, {})
    lines = writer.append(part(0, 4), *arrays(4))
    write_samples(tmp_path / "samples.parquet", lines | {"stable": [True] * 4})
    writer.append(part(4, 7), *arrays(3))
    assert Dataset(tmp_path).samples["stable"].tolist() == [True] * 4 + [True, False, True]


def test_a_table_from_before_sources_has_unknown_ones(folder):
    path = folder / "samples.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["source"]), path)
    assert set(Dataset(folder).samples["source"]) == {"unknown"}


def test_a_file_is_written_once(tmp_path):
    assert atomic.write_once(tmp_path / "a", "first")
    assert not atomic.write_once(tmp_path / "a", "second")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "first"


def test_a_sample_may_lack_a_condition(tmp_path):
    latents, conditions = arrays(4)
    columns = part(0, 4) | {"condition_row": np.array([0, -1, -1, 1])}
    DatasetWriter(tmp_path, {}).append(columns, latents, conditions[:2])
    dataset = Dataset(tmp_path)
    assert dataset.has_condition.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(dataset.condition(3), conditions[1])
    np.testing.assert_array_equal(dataset.latent(2), latents[2])
    with pytest.raises(UsageError, match="no condition for view 0 of object-00"):
        dataset.condition(1)


def test_a_failed_write_leaves_no_file(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    (tmp_path / "kept").write_text("old")
    for name in ("new", "kept"):
        with pytest.raises(OSError, match="disk full"):
            atomic.write_atomic(tmp_path / name, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda c, z, y: (c | {"extra": c["seed"]}, z, y), "unknown: .'extra'"),
        (lambda c, z, y: (c | {"seed": c["seed"][:1]}, z, y), "seed has 1 values for 4"),
        (lambda c, z, y: (c | {"status": ["lying"] * 4}, z, y), "status .'lying'"),
        (lambda c, z, y: (c | {"condition_row": [0, 1, 2, 4]}, z, y), "condition_row outside 0..3"),
        (lambda c, z, y: (c | {"sample": [0, 0, 0, 0]}, z, y), "twice"),
        (lambda c, z, y: (c, z * np.nan, y), "NaN"),
        (lambda c, z, y: (c, z, y.astype(np.float64)), "float64"),
    ],
)
def test_the_writer_refuses_what_breaks_the_contract(tmp_path, break_it, match):
    with pytest.raises(ValueError, match=match):
        DatasetWriter(tmp_path, {}).append(*break_it(part(0, 4), *arrays(4)))
    assert not list(tmp_path.iterdir())


def test_the_writer_refuses_another_origin_and_other_shapes(tmp_path):
    DatasetWriter(tmp_path, {"protocol": "a"}).append(part(0, 4), *arrays(4))
    with pytest.raises(UsageError, match=r"meta.json: protocol is 'a', this run has 'b'"):
        DatasetWriter(tmp_path, {"protocol": "b"})
    latents, conditions = arrays(3)
    with pytest.raises(ValueError, match="latent_shape"):
        DatasetWriter(tmp_path, {"protocol": "a"}).append(part(4, 7), latents[:, :1], conditions)


def test_missing_pieces_are_named(folder, tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such dataset folder"):
        Dataset(tmp_path / "nowhere")
    for name in ("meta.json", "samples.parquet", "conditions-00000.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(UsageError, match=f"{name}: no such file"):
            Dataset(folder)
        (folder / name).write_bytes(kept)
    assert len(Dataset(folder)) == 24


@pytest.mark.parametrize("size", [0, 5, 100, -1])
@pytest.mark.parametrize("name", ["latents-00000.safetensors", "samples.parquet"])
def test_truncated_files_are_named(folder, name, size):
    contents = (folder / name).read_bytes()
    (folder / name).write_bytes(contents[:size])
    with pytest.raises(UsageError, match=f"{name}.*(cut short|no safetensors)"):
        Dataset(folder)


def test_other_contents_are_named(folder):
    (folder / "latents-00000.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0hello there")
    with pytest.raises(UsageError, match="not a safetensors file"):
        Dataset(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(UsageError, match=r"meta.json: not JSON"):
        Dataset(folder)
    (folder / "meta.json").write_text('{"format": "other"}')
    with pytest.raises(UsageError, match="format is 'other'"):
        Dataset(folder)


def test_misshapen_tensors_are_named(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"latent_shape": [2, 8, 8, 8]}))
    with pytest.raises(UsageError, match=r"shape \(24, 2, 4, 4, 4\), expected \(rows, 2, 8"):
        Dataset(folder)
    (folder / "meta.json").write_text(json.dumps(meta | {"condition_shape": 3}))
    with pytest.raises(UsageError, match="condition_shape is 3"):
        Dataset(folder)


def test_rows_that_do_not_exist_are_named(folder):
    latents, _ = arrays(5)
    shards.write_shard(folder / "latents-00000.safetensors", {"latents": latents})
    with pytest.raises(UsageError, match=r"has 5 rows, samples.parquet refers to rows 0..23"):
        Dataset(folder)
    shards.write_shard(folder / "latents-00000.safetensors", {"other": latents})
    with pytest.raises(UsageError, match=r"no tensor 'latents' .it holds other"):
        Dataset(folder)


def test_no_file_stays_open_and_one_cut_short_later_is_named(folder):
    """A full-size dataset has more shards than a process may hold open."""
    before = len(os.listdir("/proc/self/fd"))
    dataset = Dataset(folder)
    dataset.latent(3)
    dataset.condition(3)
    assert len(os.listdir("/proc/self/fd")) == before
    path = folder / "latents-00000.safetensors"
    os.truncate(path, path.stat().st_size - 8)
    dataset.latent(22)
    with pytest.raises(UsageError, match="has become shorter, row 23 is cut off"):
        dataset.latent(23)
    path.unlink()
    with pytest.raises(UsageError, match="no such file any more"):
        dataset.latent(0)


def test_images_may_stand_for_conditions(tmp_path):
    latents, conditions = arrays(4)
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    both, alone = tmp_path / "both", tmp_path / "alone"
    DatasetWriter(both, {}).append(part(0, 4), latents, conditions, images)
    DatasetWriter(alone, {}).append(part(0, 4), latents, images=images)
    np.testing.assert_array_equal(Dataset(both).condition(2), conditions[2])
    for folder in (both, alone):
        dataset = Dataset(folder, images=True)
        assert dataset.condition_shape == (6, 6, 3)
        np.testing.assert_array_equal(dataset.condition(2), images[2])
        assert check(folder) == (4, [], [])
    with pytest.raises(UsageError, match="has images and no conditions; train with --conditions o"):
        Dataset(alone)
    with pytest.raises(ValueError, match="conditions: every append has them, or none"):
        DatasetWriter(alone, {}).append(part(4, 8), latents, conditions, images)
    with pytest.raises(ValueError, match="images are float32, expected uint8"):
        DatasetWriter(alone, {}).append(part(4, 8), latents, images=images.astype(np.float32))


def test_nan_is_found_at_opening_or_at_reading(folder, monkeypatch):
    latents = np.zeros((24, 2, 4, 4, 4), np.float16)
    latents[17, 1, 2, 3, 0] = np.nan
    shards.write_shard(folder / "latents-00000.safetensors", {"latents": latents})
    with pytest.raises(UsageError, match="latents row 17 holds NaN"):
        Dataset(folder)
    monkeypatch.setattr(store, "SCAN_LIMIT_BYTES", 0)
    dataset = Dataset(folder)
    dataset.latent(16)
    with pytest.raises(UsageError, match="latents row 17 holds NaN"):
        dataset.latent(17)


@pytest.mark.parametrize("column", ["tilt_deg", "object"])
def test_a_table_with_holes_is_named_by_column(folder, column):
    path = folder / "samples.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([column]), path)
    with pytest.raises(UsageError, match=f"samples.parquet: no column {column}"):
        Dataset(folder)
    index = table.schema.get_field_index(column)
    empty = pa.nulls(len(table), table.schema.field(index).type)
    pq.write_table(table.set_column(index, column, empty), path)
    with pytest.raises(UsageError, match=f"24 empty values in column {column}"):
        Dataset(folder)
    texts = pa.array([["x"]] * len(table))
    pq.write_table(table.set_column(index, column, texts), path)
    with pytest.raises(UsageError, match=f"column {column} is list"):
        Dataset(folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_all_finite_sees_every_kind(dtype, value):
    values = np.full((3, 5), np.finfo(np.float16).max / 2, dtype)
    assert shards.all_finite(values)
    values[2, 4] = value
    assert not shards.all_finite(values)
