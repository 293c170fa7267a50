"""Looking into dataset folders: figures by hand, all faults in one report, folders put together."""

from __future__ import annotations

import dataclasses
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dso_jax.dataset import check as dataset_check
from dso_jax.dataset import merge as dataset_merge
from dso_jax.dataset import samples
from dso_jax.dataset import stats as dataset_stats
from dso_jax.dataset.layout import CALLER_COLUMNS
from dso_jax.dataset.store import Dataset
from dso_jax.dataset.writer import DatasetWriter
from dso_jax.errors import UsageError
from tests.training.conftest import labels, write_dataset


@pytest.fixture
def folder(tmp_path):
    """Four objects of three images and six samples, in two shards; two samples have no label."""
    table = labels(objects=4, samples=6, views=3)
    table["tilt_deg"] = np.tile([0.5, 90.0, 1.0, 20.0, 19.9, 180.0], 4)
    table["stable"][:6] = True  # object-00 never falls
    table["stable"][6:12] = False  # object-01 never stands
    table["status"] = table["status"].astype("<U7")
    table["status"][[18, 20]] = "invalid"
    table["stable"][[18, 20]] = False
    table["status"][13] = "moving"
    table["condition_row"] = np.where(table["view"] == 2, -1, table["condition_row"])
    rng = np.random.default_rng(0)
    writer = DatasetWriter(tmp_path / "data", {"base": "b", "base_sha256": "1", "seed": 0})
    for part in (slice(0, 12), slice(12, 24)):
        some = {name: values[part] for name, values in table.items()}
        rows = np.arange(12) // 6 * 2 + some["view"]
        some["condition_row"] = np.where(some["view"] == 2, -1, rows)
        latents = rng.normal(size=(12, 2, 4, 4, 4)).astype(ml_dtypes.bfloat16)
        writer.append(some, latents, rng.normal(size=(4, 3, 8)).astype(ml_dtypes.bfloat16))
    writer.finish()
    return tmp_path / "data"


def test_figures_by_hand(folder):
    stats = dataset_stats.measure(folder)
    figures = dataclasses.asdict(stats)
    assert stats.labelled_by == {"unknown, none, protocol 0123abcd": 24}
    for name in ("bytes", "meta", "histogram", "labelled_by"):
        figures.pop(name)
    assert figures == {
        "objects": 4,
        "both": 2,
        "only_stable": 1,
        "only_unstable": 1,
        "unlabelled": 0,
        "views": 12,
        "samples": 24,
        "stable": 6 + 0 + 3 + 1,
        "unstable": 0 + 6 + 3 + 3,
        "moving": 1,
        "invalid": 2,
        "without_condition": 8,
        "usable_objects": 2,
        "usable_pairs": 3 * 3 + 1 * 3,
        "angle": "tilt_deg",
    }
    # Of 0.5 and of 1 one is not labelled: an edge belongs to the bin above it.
    assert {edge: n for edge, n in stats.histogram.items() if n} == {
        1: 3,
        2: 3,
        20: 4,
        25: 4,
        135: 4,
        360: 4,
    }
    assert sum(stats.bytes.values()) == sum(
        path.stat().st_size for path in folder.iterdir() if path.name != "meta.json"
    )


def test_an_object_without_a_condition_gives_no_pair(tmp_path):
    table = labels(objects=2, samples=4)
    table["condition_row"] = np.array([0, 0, 0, 0, -1, -1, -1, -1])
    stats = dataset_stats.measure(write_dataset(tmp_path, table))
    assert (stats.both, stats.usable_objects, stats.usable_pairs) == (2, 1, 4)


def test_the_rotation_stands_in_for_a_tilt_that_nobody_recorded(tmp_path):
    table = labels(objects=1, samples=4) | {"tilt_deg": np.full(4, np.nan)}
    table["rotation_deg"] = np.array([0.0, 360.0, np.nan, 359.0])
    stats = dataset_stats.measure(write_dataset(tmp_path, table))
    assert stats.angle == "rotation_deg"
    assert {edge: n for edge, n in stats.histogram.items() if n} == {1: 1, 360: 2}


def test_a_sound_folder_has_no_problem(folder):
    counted = []
    checked = dataset_check.check(folder, lambda *counts: counted.append(counts))
    assert checked == (24, [], []) and counted == [(12, 24), (24, 24)]


def change_table(folder, **columns):
    """Overwrites rows of the table: name -> (rows, value)."""
    table = samples.read_samples(folder / "samples.parquet")
    table = {name: values.copy() for name, values in table.items()}
    for name, (rows, value) in columns.items():
        table[name][rows] = value
    samples.write_samples(folder / "samples.parquet", {n: v.tolist() for n, v in table.items()})


def change_shard(folder, name, change):
    tensors = load_file(folder / f"{name}.safetensors")
    kind = name.partition("-")[0]
    save_file({kind: change(tensors[kind].copy())}, folder / f"{name}.safetensors")


def put(index, value):
    def change(array):
        array[index] = value
        return array

    return change


def test_all_problems_are_in_one_report(folder):
    change_table(
        folder,
        stable=([18], True),
        tilt_deg=([0], np.nan),
        rotation_deg=([0], np.nan),
        view=([1, 23], [-1, 1]),
        sample=([3, 23], [2, 4]),
        row=([3, 5, 7], [9, 6, 99]),
    )
    change_shard(folder, "latents-00000", put(2, np.nan))
    change_shard(folder, "conditions-00001", put((0, 1, 2), np.inf))
    shutil.copy(folder / "latents-00000.safetensors", folder / "latents-00007.safetensors")
    _, problems, notes = dataset_check.check(folder)
    table, first = folder / "samples.parquet", folder / "latents-00000.safetensors"
    assert problems == [
        f"{table}: object-03:0:0 invalid, but marked as stable",
        f"{table}: object-00:0:0 labelled, but with no angle",
        f"{table}: object-00:-1:1 with a negative number",
        f"{table}: object-03:1:4, object-03:1:4 listed twice",
        f"{table}: object-00:0:2, object-00:2:5, object-01:0:0, object-01:0:3 with the latent of "
        "another sample",
        f"{first}: has 12 rows, but samples.parquet wants others for object-01:1:1",
        f"{first}: NaN or infinity in the latents of object-00:2:2",
        f"{folder / 'conditions-00001.safetensors'}: NaN or infinity in the conditions of "
        "object-02:0:0, object-02:0:3",
    ]
    assert notes == [
        f"{folder / 'latents-00007.safetensors'}: no sample refers to it; the next append may "
        "overwrite it"
    ]


def test_missing_cut_and_misshapen_shards_are_named(folder):
    (folder / "latents-00001.safetensors").unlink()
    change_shard(folder, "conditions-00000", lambda array: array[:, :2])
    whole = (folder / "latents-00000.safetensors").read_bytes()
    (folder / "latents-00000.safetensors").write_bytes(whole[:-1])
    problems = dataset_check.check(folder).problems
    assert len(problems) == 3
    assert "latents-00000.safetensors: cut short" in problems[0]
    assert problems[0].endswith("object-00:0:3, object-00:1:4 and 7 more need it")
    assert "latents-00001.safetensors: no such file; object-02:0:0," in problems[1]
    assert "conditions-00000.safetensors: conditions has shape (4, 2, 8), expected" in problems[2]


def test_the_same_latent_twice_is_reported(folder):
    first = load_file(folder / "latents-00000.safetensors")["latents"]
    change_shard(folder, "latents-00001", put(3, first[5]))
    (problem,) = dataset_check.check(folder).problems
    assert problem == f"{folder}: the same latent in object-00:2:5, object-02:0:3"


@pytest.mark.parametrize(
    ("break_it", "messages"),
    [
        (lambda f: (f / "meta.json").unlink(), ["meta.json: no such file"]),
        (lambda f: (f / "meta.json").write_text("{"), ["meta.json: not JSON"]),
        (lambda f: (f / "samples.parquet").unlink(), ["samples.parquet: no such file"]),
        (
            lambda f: [p.unlink() for p in f.glob("*.*") if "-" not in p.name],
            ["meta.j", "samples."],
        ),
    ],
)
def test_a_folder_without_its_table_is_no_dataset(folder, break_it, messages):
    break_it(folder)
    problems = dataset_check.check(folder).problems
    assert len(problems) == len(messages)
    assert all(message in problem for message, problem in zip(messages, problems, strict=True))


def test_a_missing_folder_is_an_unusable_argument(tmp_path):
    for read in (dataset_check.check, dataset_stats.measure):
        with pytest.raises(UsageError, match="nowhere: no such dataset folder"):
            read(tmp_path / "nowhere")


def other(folder, out, **meta):
    """A dataset like `folder` of other objects."""
    source = Dataset(folder)
    table = {name: source.samples[name][:6] for name in CALLER_COLUMNS}
    table["object"] = np.full(6, "another")
    rng = np.random.default_rng(7)
    writer = DatasetWriter(out, {"base": "b", "base_sha256": "1", "seed": 5} | meta)
    shape = meta.get("latent_shape", source.latent_shape)
    latents = rng.normal(size=(6, *shape)).astype(np.float32)
    writer.append(table, latents, rng.normal(size=(2, 3, 8)).astype(np.float32))
    return out


def contents(*folders):
    """(object, view, sample) -> every column that travels, the latent and the condition."""
    found = {}
    for folder in folders:
        data = Dataset(folder)
        for i in range(len(data)):
            row = {n: data.samples[n][i].item() for n in CALLER_COLUMNS if n != "condition_row"}
            shown = data.condition(i).tobytes() if data.has_condition[i] else None
            key = row["object"], row["view"], row["sample"]
            found[key] = str(row), data.latent(i).tobytes(), shown
    return found


def test_a_merge_holds_the_samples_of_both(folder, tmp_path):
    second = other(folder, tmp_path / "second")
    counted = []
    out = tmp_path / "out"
    count = dataset_merge.merge([folder, second], out, lambda *counts: counted.append(counts))
    assert count == 30 and counted == [(12, 30), (24, 30), (30, 30)]
    assert contents(out) == contents(folder, second)
    meta = Dataset(out).meta
    assert (meta["base"], meta["merged"]) == ("b", [{"seed": 0}, {"seed": 5}])
    assert dataset_check.check(out).problems == []


@pytest.mark.parametrize("kinds", [("images",), ("conditions", "images")])
def test_pictures_are_merged_too(tmp_path, kinds):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 6, 6, 3), np.uint8)
    for place in (0, 1):
        table = labels(objects=2, samples=2) | {"object": np.full(4, f"object-{place}")}
        table["sample"], table["condition_row"] = np.arange(4), np.arange(2).repeat(2)
        conditions = rng.normal(size=(2, 3, 8)).astype(np.float32)
        parts = {"images": images[2 * place :][:2], "conditions": conditions}
        writer = DatasetWriter(tmp_path / str(place), {"base_sha256": "1"})
        latents = rng.normal(size=(4, 2, 4, 4, 4)).astype(np.float32)
        writer.append(table, latents, **{kind: parts[kind] for kind in kinds})
    out = tmp_path / "out"
    assert dataset_merge.merge([tmp_path / "0", tmp_path / "1"], out) == 8
    for i, row in enumerate((0, 0, 1, 1, 2, 2, 3, 3)):
        np.testing.assert_array_equal(Dataset(out, images=True).condition(i), images[row])
    assert dataset_check.check(out).problems == []
    if "conditions" in kinds:
        np.testing.assert_array_equal(Dataset(out).condition(6), conditions[1])


def test_a_killed_merge_goes_on(folder, tmp_path, monkeypatch):
    second = other(folder, tmp_path / "second")
    dataset_merge.merge([folder, second], tmp_path / "undisturbed")
    append, calls = DatasetWriter.append, iter(range(9))

    def killed(self, *args, **parts):
        if next(calls) == 1:
            raise KeyboardInterrupt
        append(self, *args, **parts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DatasetWriter, "append", killed)
        dataset_merge.merge([folder, second], tmp_path / "out")
    assert len(Dataset(tmp_path / "out")) == 12
    dataset_merge.merge([folder, second], tmp_path / "out")
    read = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("undisturbed", "out")
    ]
    assert read[0] == read[1]


def test_what_does_not_belong_together_is_refused(folder, tmp_path):
    cases = {
        "base_sha256 differs: '1' in .*data, '2' in .*second": {"base_sha256": "2"},
        "latent_shape differs": {"latent_shape": (2, 2, 2, 2)},
    }
    for message, meta in cases.items():
        second = other(folder, tmp_path / "second", **meta)
        with pytest.raises(UsageError, match=message):
            dataset_merge.merge([folder, second], tmp_path / "out")
        shutil.rmtree(second)
    copy = shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(UsageError, match=r"sample object-00:0:0 is both in .*data and in .*copy"):
        dataset_merge.merge([folder, copy], tmp_path / "out")
    assert not (tmp_path / "out").exists()
