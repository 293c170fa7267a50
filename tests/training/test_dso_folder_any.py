"""Any dataset that DSO's layout can hold comes back from it."""

from __future__ import annotations

import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dso_jax.dataset.store import Dataset
from dso_jax.dataset.writer import DatasetWriter
from dso_jax.dso_folder.export import export_folder
from dso_jax.dso_folder.import_ import import_folder
from tests.training.dso_files import files, rows

pytest.importorskip("torch")

ANGLES = st.one_of(
    st.sampled_from([0.0, 19.99, 19.999999, 20.0, 20.0000001, 360.0, np.nan]),
    st.floats(0, 360),
)
# (object, view, sample) -> angle, and the views that have no condition.
SAMPLES = st.dictionaries(
    st.tuples(
        st.sampled_from(["a", "b-1", "c/d", "c/e f", "ü/ö"]),
        st.sampled_from([0, 1, 127, 128, 999]),
        st.sampled_from([0, 1, 2, 130]),
    ),
    ANGLES,
    min_size=1,
    max_size=14,
)


def write(folder, angles: dict[tuple, float], hidden: set[int], shards: int) -> Dataset:
    keys = list(angles)
    rng = np.random.default_rng(0)
    writer = DatasetWriter(folder, {"base": "any"})
    shown = sorted({key[:2] for key in keys if key[1] not in hidden}) or [keys[0][:2]]
    conditions = {view: rng.normal(size=(2, 3)) for view in shown}
    for part in np.array_split(np.arange(len(keys)), min(shards, len(keys))):
        some = [keys[i] for i in part]
        angle = np.array([angles[key] for key in some])
        used = sorted({key[:2] for key in some} & set(shown))
        order = {view: row for row, view in enumerate(used)}
        columns = {
            "object": [key[0] for key in some],
            "view": [key[1] for key in some],
            "sample": [key[2] for key in some],
            "seed": part,
            "condition_row": [order.get(key[:2], -1) for key in some],
            "tilt_deg": angle / 2,
            "rotation_deg": angle,
            "status": ["invalid" if np.isnan(a) else "rest" for a in angle],
            "margin_deg": part / 3,
            "stable": angle < 20,
            "protocol": ["p"] * len(some),
            "engine": ["e"] * len(some),
        }
        latents = rng.normal(size=(len(some), 1, 2, 2, 2)).astype(ml_dtypes.bfloat16)
        images = np.array([conditions[view] for view in used]).reshape(-1, 2, 3)
        writer.append(columns, latents, images.astype(ml_dtypes.bfloat16))
    writer.finish()
    return Dataset(folder)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(SAMPLES, st.sets(st.sampled_from([0, 1, 127])), st.integers(1, 3))
def test_any_dataset_comes_back(tmp_path_factory, angles, hidden, shards):
    folder = tmp_path_factory.mktemp("any")
    dataset = write(folder / "ours", angles, hidden, shards)
    export_folder(dataset, folder / "dso")
    assert import_folder(folder / "dso", folder / "back").problems == []
    assert files(folder / "back") == files(folder / "ours")
    # DSO's files alone: labels of images that lack a sample may be lost, none may be turned.
    shutil.rmtree(folder / "dso/dso-jax")
    import_folder(folder / "dso", folder / "bare")
    found = rows(Dataset(folder / "bare"))
    assert len(found) == len(angles)
    for (name, view, sample), angle in angles.items():
        row = found[name if "/" in name else f"objects/{name}", view, sample]
        assert row["status"] == "invalid" or row["stable"] == (angle < 20)
        assert not (np.isnan(angle) and row["status"] != "invalid")
