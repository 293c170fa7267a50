"""`dso label --into DATA`: checked before the work, and what it did in one line after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from dso_jax.dataset import labels as dataset_labels
from dso_jax.dataset.samples import read_table


def check(folder: Path, files: Sequence[Path]) -> None:
    """Checks that every mesh has its sample, before the work.

    Raises:
      UsageError: the dataset cannot be used, or a mesh is of no sample.
    """
    dataset_labels.rows_of(folder, read_table(folder), files)


def replace(folder: Path, table: Path) -> str:
    """Gives the samples their labels; says how many changed.

    Raises:
      UsageError: the folder cannot be written.
    """
    done = dataset_labels.replace(folder, pq.read_table(table))
    left = f"; {done.left:,} without a mesh keep theirs" if done.left else ""
    lost = f", {done.invalid:,} became invalid" if done.invalid else ""
    return (
        f"{done.meshes:,} samples of {folder} have the labels of their meshes now: "
        f"{done.flipped:,} flipped{lost}{left}"
    )
