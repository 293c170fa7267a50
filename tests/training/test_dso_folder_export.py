"""A dataset as DSO's data folder: every fact of the format, and back again to the bit."""

from __future__ import annotations

import re
import shutil

import ml_dtypes
import numpy as np
import pytest

from dso_jax.dataset.store import Dataset
from dso_jax.dataset.writer import DatasetWriter
from dso_jax.dso_folder import export as dso_folder_export
from dso_jax.dso_folder.export import export_folder
from dso_jax.dso_folder.import_ import import_folder
from dso_jax.errors import UsageError
from tests.training import dso_files
from tests.training.conftest import labels
from tests.training.dso_files import Killed, files, rows

torch = pytest.importorskip("torch")

# Object -> view -> (rotation, tilt, status) of each sample.
SAMPLES = {
    "toybox-1": {
        0: [(1.0, 0.5, "rest"), (19.9999, 19.0, "moving"), (60.0, 55.0, "rest")],
        5: [(2.0, 1.0, "rest"), (np.nan, np.nan, "invalid"), (30.0, 20.0, "rest")],
    },
    "animal/cat": {0: [(1.0, 0.5, "rest"), (2.0, 0.5, "rest"), (3.0, 2.0, "rest")]},
    "animal/dog": {
        2: [(90.0, 5.0, "rest"), (2.0, 2.0, "rest"), (3.0, 2.0, "rest")],
        3: [(50.0, 48.0, "rest"), (20.0, 20.0, "rest")],
        127: [(1.0, 1.0, "rest")],
    },
}


def columns(samples=SAMPLES) -> dict[str, np.ndarray]:
    """Columns of a table; every view has a condition of its own."""
    lines, conditions = [], {}
    for name, views in samples.items():
        for view, draws in views.items():
            for number, (rotation, tilt, status) in enumerate(draws):
                row = conditions.setdefault((name, view), len(conditions))
                angle = tilt if (name, view) == ("animal/dog", 2) else rotation
                lines.append((name, view, number, row, rotation, tilt, status, angle < 20))
    names = "object view sample condition_row rotation_deg tilt_deg status stable"
    table = dict(zip(names.split(), map(np.array, zip(*lines, strict=True)), strict=True))
    n = len(lines)
    rest = {"seed": np.arange(n) * 7, "margin_deg": np.arange(n) / 8}
    return table | rest | {"protocol": np.full(n, "0123abcd"), "engine": np.full(n, "mjx 3")}


def write(folder, table, dtype=ml_dtypes.bfloat16) -> Dataset:
    """A dataset of these columns in two shards; views may straddle them."""
    rng = np.random.default_rng(0)
    n = len(table["object"])
    latents = rng.normal(size=(n, *dso_files.LATENT)).astype(dtype)
    conditions = rng.normal(size=(table["condition_row"].max() + 1, 3, 8)).astype(dtype)
    writer = DatasetWriter(folder, {"base": "toybox", "base_sha256": "ab", "sampler": {"steps": 8}})
    order = np.random.default_rng(1).permutation(n)
    for part in (order[: n // 2], order[n // 2 :]):
        used, condition_row = np.unique(table["condition_row"][part], return_inverse=True)
        some = {name: values[part] for name, values in table.items()}
        some["condition_row"] = condition_row
        writer.append(some, latents[part], conditions[used])
    writer.finish()
    return Dataset(folder)


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "data", columns())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "dso"


def load(path):
    return torch.load(path, weights_only=True, map_location="cpu")


def test_every_fact_of_the_format_holds(dataset, out):
    done = export_folder(dataset, out)
    objects = {"objects/toybox-1", "animal/cat", "animal/dog"}
    assert {str(p.parent.relative_to(out)) for p in out.glob("*/*/*")} == objects
    for row in rows(dataset).values():
        folder = out / (row["object"] if "/" in row["object"] else f"objects/{row['object']}")
        view, sample = row["view"], row["sample"]
        for name, values in (
            (f"{view:03d}_sparse_sample_{sample:03d}.pt", dataset.latent(row["index"])),
            (f"{view:03d}_cond.pt", dataset.condition(row["index"])),
        ):
            tensor = load(folder / name)
            assert tensor.dtype == torch.bfloat16 and tensor.is_contiguous()
            assert not tensor.requires_grad and tensor.device.type == "cpu"
            assert tensor.untyped_storage().nbytes() == values.nbytes
            assert tuple(tensor.shape) == values.shape
            assert tensor.view(torch.int16).numpy().tobytes() == values.tobytes()
    names = {p.name for p in out.glob("*/*/*")}
    pattern = r"\d{3}_cond\.pt|\d{3}_sparse_sample_\d{3}\.pt|\d{3}_angles\.npy|model_info\.npz"
    assert all(re.fullmatch(pattern + r"|available_images\.npy", name) for name in names)
    assert (done.objects, done.with_info, done.with_images, done.rounded) == (3, 2, 1, "")


def test_angles_are_float64_one_row_a_sample(dataset, out):
    export_folder(dataset, out)
    expected = {
        "objects/toybox-1/000": [1.0, 19.9999, 60.0],
        "objects/toybox-1/005": [2.0, np.nan, 30.0],  # NaN: neither stable nor unstable to DSO
        "animal/cat/000": [1.0, 2.0, 3.0],
        "animal/dog/002": [5.0, 2.0, 3.0],  # judged by tilt: DSO's rotation would say the opposite
    }  # not of images 3 and 127 of the dog, which lack samples: DSO has none either
    found = {
        str(p.relative_to(out))[: -len("_angles.npy")]: p for p in out.glob("*/*/*_angles.npy")
    }
    assert set(found) == set(expected)
    for name, angles in expected.items():
        array = np.load(found[name], allow_pickle=False)
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, np.array(angles)[:, None])


def test_model_info_has_the_types_of_dso_and_both_labels(dataset, out):
    export_folder(dataset, out)
    assert not (out / "animal/cat/model_info.npz").exists()  # it never falls
    with np.load(out / "objects/toybox-1/model_info.npz", allow_pickle=False) as archive:
        info = dict(archive)
    assert list(info) == ["image_ids", "glb_ids", "angles"]
    assert [str(value.dtype) for value in info.values()] == ["int8", "int8", "float16"]
    assert info["image_ids"].tolist() == [0, 0, 0, 5, 5]  # without the invalid sample
    assert info["glb_ids"].tolist() == [0, 1, 2, 0, 2]
    assert info["angles"].shape == (5, 1)
    # 19.9999 would round to 20 and fall: it keeps its label.
    np.testing.assert_array_equal(info["angles"][:, 0], [1, 19.984375, 60, 2, 30])


def test_available_images_are_whole_and_have_both_labels(dataset, out):
    export_folder(dataset, out)
    found = {str(p.parent.relative_to(out)): np.load(p) for p in out.glob("*/*/available*")}
    assert {name: array.tolist() for name, array in found.items()} == {"objects/toybox-1": [0, 5]}
    assert found["objects/toybox-1"].dtype == np.int64


def test_dsos_loader_finds_pairs(dataset, out):
    """What its dataset does with a folder, in its multi-view mode."""
    export_folder(dataset, out)
    folder = out / "objects/toybox-1"
    info = np.load(folder / "model_info.npz")
    good, bad = info["angles"][:, 0] < 20.0, info["angles"][:, 0] >= 20.0
    for rows_of in (good, bad):
        for image, number in zip(info["image_ids"][rows_of], info["glb_ids"][rows_of], strict=True):
            assert load(folder / f"{image:03d}_sparse_sample_{number:03d}.pt").shape == (2, 4, 4, 4)
            assert load(folder / f"{image:03d}_cond.pt").shape == (3, 8)
    assert good.sum() == 3 and bad.sum() == 2


def test_out_and_in_again_is_the_identity(dataset, out, tmp_path):
    export_folder(dataset, out)
    report = import_folder(out, tmp_path / "back")
    assert files(tmp_path / "back") == files(dataset.folder)
    assert report.problems == []


def test_in_out_and_in_again_is_the_identity(tmp_path, out):
    source = dso_files.make(tmp_path / "theirs")
    (source / "animal/cat/001_cond.pt").unlink()
    import_folder(source, tmp_path / "ours")
    export_folder(Dataset(tmp_path / "ours"), out)
    import_folder(out, tmp_path / "back")
    assert files(tmp_path / "back") == files(tmp_path / "ours")
    for path in source.rglob("*_angles.npy"):
        assert path.read_bytes() == (out / path.relative_to(source)).read_bytes()
    for path in source.rglob("*.pt"):
        assert torch.equal(load(path), load(out / path.relative_to(source)))
    with np.load(source / "animal/cat/model_info.npz") as archive:
        theirs = dict(archive)
    with np.load(out / "animal/cat/model_info.npz") as archive:
        ours = dict(archive)
    for name in ("image_ids", "glb_ids"):
        np.testing.assert_array_equal(theirs[name], ours[name])
    # Theirs rounds 19.995 up to 20, which falls; ours does not.
    assert (theirs["angles"] != ours["angles"]).sum() == 1 and theirs["angles"][2] == 20


def test_latents_and_labels_survive_without_our_table(dataset, out, tmp_path):
    """As after a copy of DSO's files alone."""
    export_folder(dataset, out)
    shutil.rmtree(out / "dso-jax")
    assert import_folder(out, tmp_path / "back").problems == []
    back = Dataset(tmp_path / "back")
    found, ours = rows(back), rows(dataset)
    assert len(found) == len(ours) == 15
    for (name, view, sample), row in ours.items():
        other = found[name if "/" in name else f"objects/{name}", view, sample]
        for values in (dataset.latent, back.latent), (dataset.condition, back.condition):
            assert values[0](row["index"]).tobytes() == values[1](other["index"]).tobytes()
        assert (row["status"] == "invalid") == (other["status"] == "invalid")
        assert row["status"] == "invalid" or row["stable"] == other["stable"]


def test_a_label_changed_in_the_folder_wins_over_our_table(dataset, out, tmp_path):
    export_folder(dataset, out)
    angles = np.load(out / "animal/cat/000_angles.npy")
    angles[1] = 77.0
    np.save(out / "animal/cat/000_angles.npy", angles)
    (out / "animal/cat/000_sparse_sample_002.pt").unlink()
    report = import_folder(out, tmp_path / "back")
    (problem,) = report.problems
    assert "000_sparse_sample_002.pt: is gone, dso-jax/samples.parquet lists it" in problem
    found, before = rows(Dataset(tmp_path / "back")), rows(dataset)
    changed = found["animal/cat", 0, 1]
    assert (changed["rotation_deg"], changed["stable"]) == (77.0, False)
    assert np.isnan(changed["tilt_deg"]) and changed["engine"] != "mjx 3"
    kept = found["animal/cat", 0, 0]
    assert kept["seed"] == before["animal/cat", 0, 0]["seed"] and kept["engine"] == "mjx 3"


def test_other_types_are_rounded_and_that_is_said(tmp_path, out):
    dataset = write(tmp_path / "data", columns(), np.float32)
    assert export_folder(dataset, out).rounded == "float32"
    import_folder(out, tmp_path / "back")
    back, before = rows(Dataset(tmp_path / "back")), rows(dataset)
    index = {key: row["index"] for key, row in before.items()}
    rounded = Dataset(tmp_path / "back")
    for key, row in back.items():
        np.testing.assert_array_equal(
            rounded.latent(row["index"]), dataset.latent(index[key]).astype(ml_dtypes.bfloat16)
        )


@pytest.mark.parametrize("moment", [1, 2, 9, 20])
def test_a_killed_export_goes_on(dataset, out, tmp_path, monkeypatch, moment):
    export_folder(dataset, tmp_path / "undisturbed")
    calls, write_tensor = iter(range(1, 100)), dso_folder_export.write_tensor

    def killed(path, values):
        if next(calls) == moment:
            raise Killed
        write_tensor(path, values)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(dso_folder_export, "write_tensor", killed)
        patch.setattr(dso_folder_export.shutil, "rmtree", lambda *args, **kwargs: None)
        export_folder(dataset, out)
    assert list(out.glob("*/.*.partial"))  # what SIGKILL leaves behind
    export_folder(dataset, out)
    assert files(out) == files(tmp_path / "undisturbed")


def test_another_dataset_or_a_strangers_folder_is_not_touched(dataset, out, tmp_path):
    export_folder(dataset, out)
    before = files(out)
    table = columns()
    table["margin_deg"] += 1
    other = write(tmp_path / "other", table)
    with pytest.raises(UsageError, match="dso: was exported from another dataset"):
        export_folder(other, out)
    theirs = dso_files.make(tmp_path / "theirs")
    with pytest.raises(UsageError, match="theirs: is not empty, and no export of ours"):
        export_folder(other, theirs)
    assert files(out) == before and not (theirs / "dso-jax").exists()


def test_numbers_that_int8_cannot_hold_are_int16(tmp_path, out):
    many = {"a/b": {0: [(1.0, 1.0, "rest")], 128: [(50.0, 50.0, "rest")]}}
    dataset = write(tmp_path / "data", columns(many))
    export_folder(dataset, out)
    with np.load(out / "a/b/model_info.npz") as archive:
        assert archive["image_ids"].dtype == np.int16
        assert archive["image_ids"].tolist() == [0, 128]
    import_folder(out, tmp_path / "back")
    assert files(tmp_path / "back") == files(dataset.folder)


def wrong(name):
    return lambda table: table | {"object": np.full(len(table["object"]), name)}


def judged_at_10(table):
    return table | {"stable": table["rotation_deg"] < 1.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong("a/b/c"), r"object 'a/b/c': cannot be a folder CATEGORY/OBJECT"),
        (wrong("../b"), r"object '../b': cannot be"),
        (wrong("a/"), r"object 'a/': cannot be"),
        (wrong("dso-jax/b"), r"object 'dso-jax/b': cannot be"),
        (lambda t: t | {"view": t["view"] + 900}, r"view 900..1027, .* three digits: 0..999"),
        (lambda t: t | {"sample": t["sample"] - 1}, r"sample -1..1, .* three digits"),
        (
            judged_at_10,
            r"6 labels cannot be told by an angle .* 20 degrees, first object .* stabl",
        ),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(tmp_path, out, change, message):
    table = change(columns())
    keys = list(zip(table["object"], table["view"], table["sample"], strict=True))
    first = np.unique(keys, axis=0, return_index=True)[1]
    dataset = write(tmp_path / "data", {name: values[first] for name, values in table.items()})
    with pytest.raises(UsageError, match=message):
        export_folder(dataset, out)
    assert not out.exists()


def test_two_objects_in_one_folder_are_refused(tmp_path, out):
    one = {0: [(1.0, 1.0, "rest")]}
    dataset = write(tmp_path / "data", columns({"a": one, "objects/a": one}))
    with pytest.raises(UsageError, match="'objects/a' and another object would share the folder"):
        export_folder(dataset, out)
    assert not out.exists()


def test_an_image_with_two_conditions_is_refused(tmp_path, out):
    table = labels(objects=1, samples=4)
    table["condition_row"] = np.array([0, 1, 0, 1])
    writer = DatasetWriter(tmp_path / "data", {})
    rng = np.random.default_rng(0)
    writer.append(
        table, rng.normal(size=(4, 2, 4, 4, 4)).astype("f4"), np.eye(6, dtype="f4").reshape(2, 3, 6)
    )
    with pytest.raises(UsageError, match="view 0 of object-00 has two different conditions"):
        export_folder(Dataset(tmp_path / "data"), out)
    assert [p.name for p in out.rglob("*") if p.is_file()] == ["meta.json", "samples.parquet"]
