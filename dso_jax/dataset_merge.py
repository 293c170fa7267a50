"""Several dataset folders as one: the jobs of a cluster, or rounds of sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dso_jax.dataset_layout import CALLER_COLUMNS, KEY, NO_CONDITION
from dso_jax.dataset_writer import DatasetWriter
from dso_jax.errors import UsageError
from dso_jax.store import Dataset

# Without these in common, samples do not belong together: shapes, and who made them.
_COMMON = ("latent_shape", "condition_shape", "base_sha256")

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
    datasets = [Dataset(folder) for folder in folders]
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
        for shard in np.unique(data.samples["shard"]).tolist():
            members = np.flatnonzero(data.samples["shard"] == shard)
            if done.isdisjoint(_keys(data, members)):  # an append is all or nothing
                _copy(data, members, writer)
            passed += len(members)
            if progress:
                progress(passed, total)
    writer.finish()
    return len(writer)


def _copy(data: Dataset, members: np.ndarray, writer: DatasetWriter) -> None:
    """Appends one shard; conditions that no sample refers to are left out."""
    columns: dict[str, Any] = {name: data.samples[name][members] for name in CALLER_COLUMNS}
    used, rows = np.unique(columns["condition_row"], return_inverse=True)
    first = {row: members[rows == i][0] for i, row in enumerate(used) if row != NO_CONDITION}
    lacking = int(NO_CONDITION in used)  # sorts before all rows
    columns["condition_row"] = rows.reshape(-1) - lacking
    shown = [data.condition(int(index)) for index in first.values()]
    conditions = np.stack(shown) if shown else np.empty((0, *data.condition_shape), np.float32)
    latents = np.stack([data.latent(int(index)) for index in members])
    writer.append(columns, latents, conditions)


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
