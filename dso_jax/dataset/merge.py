"""Several dataset folders as one: the jobs of a cluster, or rounds of sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dso_jax.dataset.layout import CALLER_COLUMNS, KEY, NO_CONDITION, kinds, read_meta
from dso_jax.dataset.store import Dataset
from dso_jax.dataset.writer import DatasetWriter
from dso_jax.errors import UsageError

# Without these in common, samples do not belong together: shapes, and who made them.
_COMMON = ("latent_shape", "condition_shape", "image_shape", "base_sha256")

Progress = Callable[[int, int], None]  # samples dealt with, and of how many


def merge(folders: Sequence[Path], out: Path, progress: Progress | None = None) -> int:
    """Copies the samples of several dataset folders into `out`, shard by shard.

    Labels are copied as they are; each sample's row names the protocol that made it. What meta.json
    says alike in all folders stays; the rest is kept under `merged`. A merge that was killed goes
    on where it stopped.

    Args:
        progress: called with the number of samples that are in place, and of all.

    Returns:
        How many samples `out` holds.

    Raises:
        UsageError: a folder is damaged, they do not belong together, or share a sample.
    """
    datasets = [_open(folder, 0) for folder in folders]
    for key in _COMMON:
        values = {str(data.folder): data.meta.get(key) for data in datasets}
        if len({str(value) for value in values.values()}) > 1:
            listed = ", ".join(f"{value!r} in {folder}" for folder, value in values.items())
            raise UsageError(f"{key} differs: {listed}")
    _check_distinct(datasets)
    writer = DatasetWriter(out, _meta(datasets))
    done = writer.keys
    passed, total = 0, sum(len(data) for data in datasets)
    for data in datasets:
        # The same samples, seen through their pictures where these are kept beside conditions.
        pictures = _open(data.folder, -1)
        for shard in np.unique(data.samples["shard"]).tolist():
            members = np.flatnonzero(data.samples["shard"] == shard)
            if done.isdisjoint(_keys(data, members)):  # an append is all or nothing
                _copy(data, pictures, members, writer)
            passed += len(members)
            if progress:
                progress(passed, total)
    writer.finish()
    return len(writer)


def _open(folder: Path, seen: int) -> Dataset:
    """A folder with the first (0) or last (-1) of what it keeps of a prompt: conditions, images."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such dataset folder")
    kept = kinds(read_meta(folder))[1:]
    return Dataset(folder, images=kept[seen] == "images")


def _copy(data: Dataset, pictures: Dataset, members: np.ndarray, writer: DatasetWriter) -> None:
    """Appends one shard; conditions that no sample refers to are left out."""
    columns: dict[str, Any] = {name: data.samples[name][members] for name in CALLER_COLUMNS}
    used, rows = np.unique(columns["condition_row"], return_inverse=True)
    first = {row: members[rows == i][0] for i, row in enumerate(used) if row != NO_CONDITION}
    lacking = int(NO_CONDITION in used)  # sorts before all rows
    columns["condition_row"] = rows.reshape(-1) - lacking
    kept = {}
    for kind, source in zip(kinds(data.meta)[1:], (data, pictures), strict=False):
        shown = [source.condition(int(index)) for index in first.values()]
        empty = np.empty((0, *source.condition_shape), np.uint8 if kind == "images" else np.float32)
        kept[kind] = np.stack(shown) if shown else empty
    latents = np.stack([data.latent(int(index)) for index in members])
    writer.append(columns, latents, **kept)


def _check_distinct(datasets: Sequence[Dataset]) -> None:
    seen: dict[tuple, Path] = {}
    for data in datasets:
        for key in _keys(data, np.arange(len(data))):
            if seen.setdefault(key, data.folder) is not data.folder:
                name = ":".join(map(str, key))
                raise UsageError(f"sample {name} is both in {seen[key]} and in {data.folder}")


def _keys(data: Dataset, rows: np.ndarray) -> Iterator[tuple]:
    return zip(*(data.samples[name][rows].tolist() for name in KEY), strict=True)


def _meta(datasets: Sequence[Dataset]) -> dict[str, Any]:
    metas = [{k: v for k, v in data.meta.items() if k != "format"} for data in datasets]
    shared = {k: v for k, v in metas[0].items() if all(k in m and m[k] == v for m in metas)}
    others = [{k: v for k, v in meta.items() if k not in shared} for meta in metas]
    return shared | ({"merged": others} if any(others) else {})
