"""A sample of DSO's data folder as a line of our table, and what an export of ours adds to that."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dso_jax.dataset.layout import CALLER_COLUMNS, read_meta
from dso_jax.dataset.samples import SAMPLES, read_samples
from dso_jax.dso_folder.labels import STABLE_BELOW, Label, angles_of
from dso_jax.dso_folder.layout import ORIGIN, ObjectFiles, folder_name
from sim_mjx.dso_outputs import float16_angles
from sim_mjx.protocol import Protocol

# How DSO labelled, in our terms: file units, y and z swapped, MuJoCo's own solver limits, 10 s.
PROTOCOL = dataclasses.replace(
    Protocol.preset("dso-label"),
    up="y",
    up_turn="swap",
    solver_iterations=100,
    linesearch_iterations=50,
)
ENGINE = "mujoco (DSO, version not recorded)"
META = {"source": "DSO data folder", "protocol": PROTOCOL.hash()}
COLUMNS = tuple(name for name in CALLER_COLUMNS if name != "condition_row")

Key = tuple[str, int, int]  # CATEGORY/OBJECT, view, sample


class Sample(NamedTuple):
    """One latent of the folder."""

    files: ObjectFiles
    view: int
    number: int

    @property
    def key(self) -> Key:
        return self.files.name, self.view, self.number


class Origin:
    """The table of the dataset that a folder was exported from: what DSO's layout cannot say."""

    def __init__(self, meta: dict[str, Any], samples: dict[str, np.ndarray]) -> None:
        self.meta = meta
        self._samples = samples
        self._angles = angles_of(samples)
        self._names = {folder_name(name): name for name in np.unique(samples["object"]).tolist()}
        folders = {name: folder for folder, name in self._names.items()}
        objects, views, numbers = (samples[n].tolist() for n in ("object", "view", "sample"))
        self._keys = [
            (folders[name], view, number)
            for name, view, number in zip(objects, views, numbers, strict=True)
        ]
        self._rows = {key: row for row, key in enumerate(self._keys)}

    @classmethod
    def read(cls, root: Path) -> Origin | None:
        """That of the folder `root`; None if it is DSO's own.

        Raises:
            UsageError: naming the damaged file.
        """
        folder = root / ORIGIN
        if not (folder / SAMPLES).exists():
            return None
        return cls(read_meta(folder), read_samples(folder / SAMPLES))

    def name(self, folder: str) -> str:
        """Our name of the object CATEGORY/OBJECT."""
        return self._names.get(folder, folder)

    def shards(self) -> Iterator[list[tuple[Key, int]]]:
        """Keys and condition rows of each shard, in the order of its rows."""
        shard, row = self._samples["shard"], self._samples["row"]
        for number in np.unique(shard):
            members = np.flatnonzero(shard == number)
            members = members[np.argsort(row[members])]
            conditions = self._samples["condition_row"][members].tolist()
            yield list(zip((self._keys[i] for i in members), conditions, strict=True))

    def row(self, key: Key, label: Label | None) -> dict[str, Any] | None:
        """The table's line for a sample, unless the folder's label has been changed since."""
        row = self._rows.get(key)
        if row is None or not _unchanged(self._angles[row], label):
            return None
        return {name: self._samples[name][row] for name in COLUMNS}


def make_row(sample: Sample, label: Label | None, origin: Origin | None) -> dict[str, Any]:
    """The columns COLUMNS of one sample; `label` None: DSO has none."""
    if origin is not None and (row := origin.row(sample.key, label)):
        return row
    angle = np.nan if label is None else label.angle
    return {
        "object": sample.files.name if origin is None else origin.name(sample.files.name),
        "view": sample.view,
        "sample": sample.number,
        "seed": sample.number,  # DSO draws sample e of every image with seed e
        "tilt_deg": np.nan,  # DSO keeps the total rotation only
        "rotation_deg": angle,
        # Nor does it tell whether an object was still moving after its ten seconds.
        "status": "invalid" if np.isnan(angle) else "rest",
        "margin_deg": np.nan,
        "stable": bool(angle < STABLE_BELOW),
        "protocol": PROTOCOL.hash(),
        "engine": ENGINE,
        "source": "mesh",
    }


def source_of(label: Label | None) -> str:
    """Where a label comes from, for people."""
    if label is None or np.isnan(label.angle):
        return "no label"
    if label.source == "angles":
        return "IMG_angles.npy"
    if label.angle == STABLE_BELOW:
        return "model_info.npz, exactly 20 in float16: unstable, perhaps 19.99"
    return "model_info.npz"


def to_columns(rows: list[dict[str, Any]]) -> Mapping[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in COLUMNS}


def _unchanged(angle: float, label: Label | None) -> bool:
    """Whether a label in the folder is what an export writes for `angle`."""
    if label is None:  # DSO has no place for labels of images that lack a sample
        return True
    if np.isnan(label.angle) or np.isnan(angle):
        return bool(np.isnan(angle) and np.isnan(label.angle))
    if label.source == "angles":
        return bool(angle == label.angle)
    return float16_angles(np.array([angle]), STABLE_BELOW).tolist() == [label.angle]
