"""DSO's data folder in: every sample and label, its faults undone, bad files named."""

from __future__ import annotations

import pickle
import shutil
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from dso_jax import data
from dso_jax.dataset import writer as dataset_writer
from dso_jax.dataset.store import Dataset
from dso_jax.dso_folder import plan as dso_folder_plan
from dso_jax.dso_folder.import_ import import_folder
from dso_jax.errors import UsageError
from tests.training import dso_files
from tests.training.dso_files import Killed, files, rows

torch = pytest.importorskip("torch")


@pytest.fixture
def source(tmp_path):
    return dso_files.make(tmp_path / "dso")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "ours"


def test_every_sample_comes_bit_for_bit(source, out):
    counted = []
    report = import_folder(source, out, progress=lambda *counts: counted.append(counts))
    assert report.problems == [] and report.found == 17
    assert counted == [(done, 17) for done in range(1, 18)]
    dataset = Dataset(out)
    assert (dataset.latent_shape, dataset.condition_shape) == ((2, 4, 4, 4), (3, 8))
    found = rows(dataset)
    assert len(found) == 17
    for (name, view, sample), row in found.items():
        for values, file in (
            (dataset.latent(row["index"]), f"{view:03d}_sparse_sample_{sample:03d}.pt"),
            (dataset.condition(row["index"]), f"{view:03d}_cond.pt"),
        ):
            theirs = torch.load(source / name / file, weights_only=True)
            assert values.dtype == ml_dtypes.bfloat16
            assert values.tobytes() == theirs.view(torch.int16).numpy().tobytes()
        assert row["seed"] == sample  # as DSO draws
        assert np.isnan(row["tilt_deg"]) and np.isnan(row["margin_deg"])  # DSO has neither


def test_labels_come_from_the_precise_file_where_there_is_one(source, out):
    report = import_folder(source, out)
    found = rows(Dataset(out))
    for name, views in dso_files.OBJECTS.items():
        for view, angles in views.items():
            for sample, angle in enumerate(angles):
                row = found[name, view, sample]
                assert row["rotation_deg"] == angle  # all of them are exact in their file's type
                assert (row["stable"], row["status"]) == (angle < 20, "rest")
    # 19.995 is stable, though model_info.npz says 20; image 3 of the chair has that file only.
    assert found["animal/cat", 0, 2]["stable"]
    assert report.labels == {"IMG_angles.npy": 15, "model_info.npz": 2}


def test_an_angle_that_float16_may_have_rounded_up_is_told(source, out):
    for path in (source / "animal/cat").glob("*_angles.npy"):
        path.unlink()
    report = import_folder(source, out)
    row = rows(Dataset(out))["animal/cat", 0, 2]
    assert (row["rotation_deg"], row["stable"]) == (20.0, False)  # as DSO reads it
    kind = "model_info.npz, exactly 20 in float16: unstable, perhaps 19.99"
    assert report.labels[kind] == 1 and report.labels["model_info.npz"] == 7


def test_pairs_are_drawn_from_an_imported_folder(source, out):
    import_folder(source, out)
    dataset = Dataset(out)
    assert [c.name for c in data.candidates(dataset)] == ["animal/cat", "chair/a-b_c"]
    batch = data.at(data.batches(dataset, 4, seed=0), 3)
    assert {name: value.shape for name, value in batch.items()} == {
        "win": (4, 2, 4, 4, 4),
        "lose": (4, 2, 4, 4, 4),
        "cond": (4, 3, 8),
    }


def test_no_angle_or_nan_is_no_label(source, out):
    np.save(source / "animal/cat/001_angles.npy", np.array([[2.0], [np.nan], [4.0]]))
    (source / "animal/dog/000_angles.npy").unlink()
    report = import_folder(source, out)
    found = rows(Dataset(out))
    for key in (("animal/cat", 1, 1), ("animal/dog", 0, 0), ("animal/dog", 0, 2)):
        assert (found[key]["status"], found[key]["stable"]) == ("invalid", False)
        assert np.isnan(found[key]["rotation_deg"])
    assert report.labels["no label"] == 4
    # model_info.npz had an angle for that sample: the contradiction is reported.
    assert [text.partition(": ")[2] for text in report.problems] == [
        "1 angles in IMG_angles.npy and model_info.npz differ, first nan and 3 for sample (1, 1); "
        "IMG_angles.npy is used"
    ]


@pytest.mark.parametrize(("angle", "text"), [(np.inf, "inf"), (-3.0, "-3"), (361.0, "361")])
def test_an_impossible_angle_is_no_label(source, out, angle, text):
    np.save(source / "animal/dog/000_angles.npy", np.array([[1.0], [angle], [2.0]]))
    (problem,) = import_folder(source, out).problems
    assert problem.endswith(f"animal/dog: angle {text} of sample (0, 1) is outside 0..360")
    found = rows(Dataset(out))
    assert [found["animal/dog", 0, i]["status"] for i in range(3)] == ["rest", "invalid", "rest"]


def test_files_at_odds_are_reported(source, out):
    np.save(source / "animal/cat/001_angles.npy", np.array([[2.0], [33.0], [4.0]]))
    (problem,) = import_folder(source, out).problems
    assert "animal/cat: 1 angles in IMG_angles.npy and model_info.npz differ" in problem
    assert "first 33 and 3 for sample (1, 1); IMG_angles.npy is used" in problem
    assert not rows(Dataset(out))["animal/cat", 1, 1]["stable"]


def test_an_image_without_a_condition_is_kept(source, out):
    """DSO writes it with sample 0, and not at all if that failed."""
    for name in ("000_cond.pt", "000_sparse_sample_000.pt", "000_000.glb", "000_angles.npy"):
        (source / "animal/cat" / name).unlink()
    assert import_folder(source, out).problems == []
    dataset = Dataset(out)
    found = rows(dataset)
    assert ("animal/cat", 0, 0) not in found
    kept = [found["animal/cat", 0, i]["index"] for i in (1, 2)]
    assert not dataset.has_condition[kept].any() and dataset.has_condition.sum() == 14
    cat = data.candidates(dataset)[0]
    assert set(kept) >= set(cat.unstable.tolist()) and cat.views.tolist() == [
        found["animal/cat", 1, 0]["index"]
    ]


def wrapped(folder, views: int, meshes: bool) -> None:
    """An object with more images than int8 can count."""
    name = {view: [1.0, 50.0] for view in range(126, views)}
    dso_files.make(folder, {"big/one": name}, meshes=meshes)
    for path in (folder / "big/one").glob("*_angles.npy"):
        path.unlink()


@pytest.mark.parametrize(("views", "meshes"), [(131, True), (131, False), (300, True)])
def test_numbers_that_overflowed_are_restored(tmp_path, out, views, meshes):
    wrapped(tmp_path / "dso", views, meshes)
    with np.load(tmp_path / "dso/big/one/model_info.npz") as archive:
        assert archive["image_ids"].min() == -128
    report = import_folder(tmp_path / "dso", out)
    assert report.problems == [] and report.labels == {"model_info.npz": 2 * (views - 126)}
    assert all(row["rotation_deg"] == (1, 50)[s] for (_, _, s), row in rows(Dataset(out)).items())


def test_numbers_that_nobody_can_restore_are_reported(tmp_path, out):
    """Image 384 looks like 128 once it is int8."""
    wrapped(tmp_path / "dso", 400, meshes=False)
    report = import_folder(tmp_path / "dso", out)
    (problem,) = report.problems
    assert "model_info.npz: 36 samples are listed twice, first (126, 0)" in problem
    found = rows(Dataset(out))
    assert found["big/one", 128, 0]["status"] == found["big/one", 384, 0]["status"] == "invalid"


@pytest.mark.parametrize("meshes", [True, False])
def test_rows_of_angles_follow_the_meshes(tmp_path, out, meshes):
    """Sample 1 failed: DSO's second angle belongs to sample 2."""
    dso_files.make(tmp_path / "dso", {"a/b": {0: [1.0, 2.0, 30.0]}}, meshes=meshes)
    folder = tmp_path / "dso/a/b"
    for name in ("000_sparse_sample_001.pt", "model_info.npz"):
        (folder / name).unlink()
    (folder / "000_001.glb").unlink(missing_ok=True)
    np.save(folder / "000_angles.npy", np.array([[1.0], [30.0]]))
    assert import_folder(tmp_path / "dso", out).problems == []
    assert rows(Dataset(out))["a/b", 0, 2]["rotation_deg"] == 30.0
    # Three meshes for two angles: nobody knows whose they are.
    for number in (0, 2, 3):
        (folder / f"000_00{number}.glb").write_bytes(b"glTF")
    problems = import_folder(tmp_path / "dso", tmp_path / "again").problems
    assert "000_angles.npy: 2 angles for 3 meshes" in problems[1]
    assert set(Dataset(tmp_path / "again").samples["status"]) == {"invalid"}


class Program:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def damage(folder, trace) -> dict[str, str]:
    """Breaks files in every way; returns what is to be said of each."""
    big = dso_files.tensor(0, (2, 4, 4, 8))
    whole = (folder / "animal/cat/000_sparse_sample_000.pt").read_bytes()
    (folder / "animal/cat/000_sparse_sample_000.pt").write_bytes(whole[:-100])
    (folder / "animal/cat/000_sparse_sample_001.pt").write_bytes(b"")
    torch.save(big, folder / "animal/cat/000_sparse_sample_002.pt")
    torch.save(big[..., :4].float(), folder / "animal/cat/001_sparse_sample_000.pt")
    torch.save(big[..., :4] * np.inf, folder / "animal/cat/001_sparse_sample_001.pt")
    torch.save({"w": big, "run": Program(trace)}, folder / "animal/dog/000_sparse_sample_000.pt")
    torch.save([big], folder / "animal/dog/000_sparse_sample_001.pt")
    (folder / "animal/dog/000_cond.pt").write_bytes(b"not a tensor")
    with (folder / "chair/a-b_c/000_angles.npy").open("wb") as file:
        np.save(file, np.array([Program(trace)], dtype=object), allow_pickle=True)
    (folder / "chair/a-b_c/002_angles.npy").write_bytes(b"\x93NUMPY")
    (folder / "chair/a-b_c/model_info.npz").write_bytes(pickle.dumps(Program(trace)))
    (folder / "chair/a-b_c/1000_cond.pt").write_bytes(b"")
    (folder / "chair/a-b_c/007_000.glb").write_bytes(b"glTF")
    return {
        "animal/cat/000_sparse_sample_000.pt": "cut short",
        "animal/cat/000_sparse_sample_001.pt": "the file is empty",
        "animal/cat/000_sparse_sample_002.pt": "is bfloat16 (2, 4, 4, 8), expected bfloat16 (2, 4,",
        "animal/cat/001_sparse_sample_000.pt": "is float32 (2, 4, 4, 4), expected bfloat16 (2, 4,",
        "animal/cat/001_sparse_sample_001.pt": "holds NaN or infinity",
        "animal/dog/000_sparse_sample_000.pt": "refused, because loading it would use",
        "animal/dog/000_sparse_sample_001.pt": "holds a list, expected one tensor",
        "animal/dog/000_cond.pt": "not a whole torch file",
        "chair/a-b_c/000_angles.npy": "cannot be read (Object arrays cannot be loaded",
        "chair/a-b_c/002_angles.npy": "cannot be read",
        "chair/a-b_c/model_info.npz": "cannot be read",
        "chair/a-b_c/1000_cond.pt": "expected numbers of three digits",
        "chair/a-b_c": "1 meshes have no latent, first 007_sparse_sample_000.pt",
    }


def test_bad_files_are_named_and_the_rest_goes_on(source, out, tmp_path):
    expected = damage(source, tmp_path / "it-ran")
    problems = import_folder(source, out).problems
    assert not (tmp_path / "it-ran").exists()
    for name, text in expected.items():
        assert sum(p.startswith(f"{source / name}: {text}") for p in problems) == 1, (
            name,
            problems,
        )
    assert len(problems) == len(expected)
    dataset = Dataset(out)
    assert len(dataset) == 10
    assert dataset.has_condition.sum() == 9  # that of the dog is gone
    assert sum(row["status"] == "invalid" for row in rows(dataset).values()) == 8


def test_strict_stops_before_the_first_bad_shard(source, out, monkeypatch):
    monkeypatch.setattr(dso_folder_plan, "SHARD_BYTES", 1200)  # an object or two a shard
    (source / "chair/a-b_c/003_sparse_sample_001.pt").write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"--strict: .*003_sparse_sample_001.pt: the file is empty"
    ):
        import_folder(source, out, strict=True)
    assert 0 < len(Dataset(out)) < 17
    torch.save(
        dso_files.tensor(0, dso_files.LATENT), source / "chair/a-b_c/003_sparse_sample_001.pt"
    )
    import_folder(source, out, strict=True)  # once it is repaired, the import goes on
    assert len(Dataset(out)) == 17


@pytest.mark.parametrize("moment", range(1, 9))
@pytest.mark.parametrize("broken", [False, True])
def test_a_killed_import_goes_on_to_the_same_folder(
    source, out, tmp_path, monkeypatch, moment, broken
):
    monkeypatch.setattr(dso_folder_plan, "SHARD_BYTES", 1200)
    if broken:
        damage(source, tmp_path / "it-ran")
    import_folder(source, tmp_path / "undisturbed")
    assert len(list((tmp_path / "undisturbed").glob("latents-*"))) >= 3
    steps = iter(range(1, 100))

    def killed_at(write):
        def wrapper(*args):
            if next(steps) == moment:
                raise Killed
            write(*args)
            if next(steps) == moment:
                raise Killed

        return wrapper

    with monkeypatch.context() as patch, pytest.raises(Killed):
        for name in ("write_shard", "write_samples"):
            patch.setattr(dataset_writer, name, killed_at(getattr(dataset_writer, name)))
        import_folder(source, out)
    there = len(Dataset(out)) if list(out.glob("samples*.parquet")) else 0
    assert import_folder(source, out).there == there
    assert files(out) == files(tmp_path / "undisturbed")
    again = import_folder(source, out)
    assert again.there == len(Dataset(out)) and not again.labels
    assert files(out) == files(tmp_path / "undisturbed")


def test_what_was_added_later_is_imported_too(source, out):
    import_folder(source, out)
    dso_files.make(source, {"new/one": {0: [1.0, 30.0]}})
    report = import_folder(source, out)
    assert (report.there, report.found, len(Dataset(out))) == (17, 19, 19)


def test_memory_holds_one_shard_whatever_the_size_of_the_folder(tmp_path, out, monkeypatch):
    monkeypatch.setattr(dso_folder_plan, "SHARD_BYTES", 2**20)
    monkeypatch.setattr(dso_files, "LATENT", (8, 16, 16, 16))  # 64 KiB
    dso_files.make(tmp_path / "dso", {f"a/{i:02d}": {0: [1.0, 50.0, 2.0, 3.0]} for i in range(40)})
    tracemalloc.start()
    try:
        import_folder(tmp_path / "dso", out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in out.iterdir()) > 10 * 2**20
    assert peak < 4 * 2**20  # a shard twice, and the tables


@pytest.mark.parametrize(
    ("below", "hint"),
    [
        ("animal", "this is a CATEGORY folder: give the folder above it"),
        ("animal/cat", "this is the folder of one object: give the folder two above it"),
        ("..", r"CATEGORY/OBJECT/IMG_sparse_sample_EEE.pt in it$"),
        ("nowhere", "no such folder"),
    ],
)
def test_the_wrong_folder_is_refused_with_a_hint(source, out, below, hint):
    with pytest.raises(UsageError, match=hint):
        import_folder(source / below, out)
    assert not out.exists()


def test_a_folder_without_a_readable_tensor_is_refused(source, out):
    for path in source.rglob("*_cond.pt"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"no IMG_cond.pt holds .* floats .*the file is empty"):
        import_folder(source, out)
    assert not out.exists()


def test_the_folder_of_something_else_is_not_touched(source, out, dataset_folder):
    shutil.copytree(dataset_folder, out)
    before = files(out)
    with pytest.raises(UsageError, match=r"meta.json: source is None, this run has 'DSO data"):
        import_folder(source, out)
    assert files(out) == before
    dso_files.make(source.parent / "other", {"x/y": {0: [1.0]}})
    torch.save(
        dso_files.tensor(0, (1, 2, 2, 2)), source.parent / "other/x/y/000_sparse_sample_000.pt"
    )
    import_folder(source, source.parent / "first")
    with pytest.raises(
        UsageError, match=r"latent_shape is \[2, 4, 4, 4\], .*other has \(1, 2, 2, 2\)"
    ):
        import_folder(source.parent / "other", source.parent / "first")


def test_without_torch_one_message_says_so(source, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"torch, which is not installed; pip install 'dso-jax"):
        import_folder(source, out)
    assert not out.exists()
