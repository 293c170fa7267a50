"""A dataset folder of ours as DSO's data folder, which its own training script reads.

Every object appears whole or not at all, so an export that was killed goes on where it stopped.
Beside DSO's files stands `dso-jax/`, with which the import gives back the very same dataset.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dso_jax.atomic import write_text
from dso_jax.dataset.samples import SAMPLES, fingerprint, read_samples, write_samples
from dso_jax.dataset.store import Dataset
from dso_jax.dso_folder.labels import STABLE_BELOW, angles_of
from dso_jax.dso_folder.layout import ORIGIN, object_rows, write_tensor
from dso_jax.errors import UsageError
from sim_mjx import dso_outputs

Progress = Callable[[int, int], None]  # samples dealt with, and of how many


class Exported(NamedTuple):
    """What a DSO data folder holds.

    Attributes:
        objects: all of them.
        with_info: objects with model_info.npz, that is, with both labels.
        with_images: objects with available_images.npy too; DSO's loader draws from these alone.
        rounded: type that became bf16, "" if the latents and conditions were bf16 before.
    """

    objects: int
    with_info: int
    with_images: int
    rounded: str


def export_folder(dataset: Dataset, out: Path, *, progress: Progress | None = None) -> Exported:
    """Writes `dataset` into the folder `out` in DSO's layout, going on where it stopped.

    Args:
        progress: called with the number of samples dealt with so far, and of all.

    Raises:
        UsageError: names, numbers or labels that the layout cannot hold, one image with two
            conditions, a folder with other contents, or torch is not installed.
    """
    samples = dataset.samples
    angles = angles_of(samples)
    objects = object_rows(dataset.folder, samples)
    _begin(dataset, out)
    complete = int(samples["sample"].max()) + 1
    passed = 0
    for name, rows in objects.items():
        folder = out / name
        if not folder.exists():
            _write_object(dataset, rows, folder, angles, complete)
        passed += len(rows)
        if progress:
            progress(passed, len(dataset))
    first = dataset.latent(0).dtype.name
    return Exported(
        objects=len(objects),
        with_info=sum((out / name / "model_info.npz").exists() for name in objects),
        with_images=sum((out / name / "available_images.npy").exists() for name in objects),
        rounded="" if first == "bfloat16" else first,
    )


def _write_object(
    dataset: Dataset,
    rows: np.ndarray,
    folder: Path,
    angles: np.ndarray,
    complete: int,
) -> None:
    """Writes the folder of one object under another name, then renames it."""
    views, numbers = (dataset.samples[name][rows].tolist() for name in ("view", "sample"))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed export
    partial.mkdir(parents=True)
    try:
        shown: dict[int, int] = {}  # view -> row of which the condition was written
        for row, view, number in zip(rows.tolist(), views, numbers, strict=True):
            write_tensor(partial / f"{view:03d}_sparse_sample_{number:03d}.pt", dataset.latent(row))
            if dataset.has_condition[row] and view not in shown:
                write_tensor(partial / f"{view:03d}_cond.pt", dataset.condition(row))
            if dataset.has_condition[row]:
                _check_same_condition(dataset, shown.setdefault(view, row), row)
        labels = map(dso_outputs.Sample, views, numbers, angles[rows].tolist())
        dso_outputs.write_object(partial, list(labels), complete, STABLE_BELOW)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_same_condition(dataset: Dataset, one: int, other: int) -> None:
    """An image has one condition here, though several shards may hold a copy of it."""
    places = [
        [dataset.samples[name][row] for name in ("shard", "condition_row")] for row in (one, other)
    ]
    if places[0] != places[1] and not np.array_equal(
        dataset.condition(one), dataset.condition(other)
    ):
        name, view = dataset.samples["object"][one], dataset.samples["view"][one]
        raise UsageError(f"{dataset.folder}: view {view} of {name} has two different conditions")


def _begin(dataset: Dataset, out: Path) -> None:
    """Makes the folder with the table it comes from, or checks that it comes from this one."""
    table = out / ORIGIN / SAMPLES
    if table.exists():
        if fingerprint(read_samples(table)) != dataset.fingerprint:
            raise UsageError(f"{out}: was exported from another dataset; give a new folder")
        return
    try:
        if out.exists() and any(path.name != ORIGIN for path in out.iterdir()):
            raise UsageError(f"{out}: is not empty, and no export of ours; give a new folder")
        table.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror})") from None
    meta = (dataset.folder / "meta.json").read_text(encoding="utf-8")
    write_text(table.with_name("meta.json"), meta)
    write_samples(table, dataset.samples)
