"""The dataset folder: samples with their labels, latents and conditions.

    FOLDER/samples-00000.parquet          one line a sample of one append, columns of samples.SCHEMA
    FOLDER/samples.parquet                the lines of many appends, put together
    FOLDER/latents-00000.safetensors      tensor `latents` (rows, C, r, r, r), one shard an append
    FOLDER/conditions-00000.safetensors   tensor `conditions` (rows, S, D), the views of that append
    FOLDER/images-00000.safetensors       tensor `images` (rows, E, E, 3): their prepared pictures
    FOLDER/meta.json                      what made it: base, protocol, sampler, shapes
    FOLDER/unlabelled-00000.parquet       samples of an append that waits for its labels

A folder has conditions, images or both; from images a training run computes conditions again.

A shard is written once and never touched again. The lines of an append are renamed into place
after its shards, so that rename is the commit: after a kill at any moment whatever is listed is
there, and a shard that is not listed yet is written again. Appends share no file, so several
processes may write to one folder, each its own shards (`dso_jax.dataset.writer`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dso_jax.dataset.layout import (
    KEY,
    NO_CONDITION,
    ROW_COLUMNS,
    SHAPES,
    kinds,
    read_meta,
    row_shape,
    shard_path,
)
from dso_jax.dataset.samples import SAMPLES, fingerprint, read_table
from dso_jax.dataset.shards import DTYPES, PIXELS, Shard, all_finite
from dso_jax.errors import UsageError

__all__ = ["KEY", "NO_CONDITION", "Dataset", "kinds", "read_meta", "row_shape"]

# Folders up to this size are searched for NaN before any work; larger ones as they are read.
SCAN_LIMIT_BYTES = 256 * 2**20


class Dataset:
    """A dataset folder, open for reading.

    Attributes:
        folder: where it is.
        meta: contents of meta.json.
        samples: column name -> array (N,), one entry a sample, shard after shard.
        fingerprint: sha256 of the table; names the exact set of samples and labels.
        has_condition: (N,) bool: samples of which the image, or its condition, is stored.
        latent_shape: (C, r, r, r).
        condition_shape: (S, D), or of the images (E, E, 3) if they are read instead.
    """

    def __init__(self, folder: str | Path, *, images: bool = False) -> None:
        """Open `folder` and check everything that can be checked without reading all of it.

        Args:
            folder: of the dataset.
            images: whether `condition` gives the images, from which conditions are computed.

        Raises:
            UsageError: naming the file or column, when something is missing, cut short, misshapen
                or not finite.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder}: no such dataset folder")
        self.meta = read_meta(self.folder)
        self.samples = read_table(self.folder)
        self.fingerprint = fingerprint(self.samples)
        self.latent_shape = row_shape(self.folder, self.meta, "latent_shape")
        self._seen = "images" if images else "conditions"
        if self._seen not in kinds(self.meta):
            other, way = ("conditions", "stored") if images else ("images", "online")
            raise UsageError(
                f"{self.folder}: has {other} and no {self._seen}; train with --conditions {way}"
            )
        self.condition_shape = row_shape(self.folder, self.meta, SHAPES[self._seen])
        # The image of a sample that came from elsewhere may be gone.
        self.has_condition = self.samples["condition_row"] != NO_CONDITION
        self._shards = {
            (kind, shard): self._open(kind, shard)
            for shard in np.unique(self.samples["shard"]).tolist()
            for kind in ("latents", self._seen)
        }
        if sum(shard.nbytes for shard in self._shards.values()) <= SCAN_LIMIT_BYTES:
            for index in range(len(self)):
                self.latent(index)
                if self.has_condition[index]:
                    self.condition(index)

    def __len__(self) -> int:
        return len(self.samples["object"])

    @property
    def usable(self) -> np.ndarray:
        """(N,) bool: samples with a label, that is, not `invalid`."""
        return self.samples["status"] != "invalid"

    def latent(self, index: int) -> np.ndarray:
        """(C, r, r, r) latent of sample `index`, as stored."""
        return self._row("latents", index)

    def condition(self, index: int) -> np.ndarray:
        """(S, D) condition of the image from which sample `index` was made, or (E, E, 3) the image.

        Raises:
            UsageError: the sample has none, see `has_condition`.
        """
        if not self.has_condition[index]:
            name, view = self.samples["object"][index], self.samples["view"][index]
            raise UsageError(f"{self.folder}: no condition for view {view} of {name}")
        return self._row(self._seen, index)

    def _row(self, kind: str, index: int) -> np.ndarray:
        shard = self._shards[kind, int(self.samples["shard"][index])]
        row = int(self.samples[ROW_COLUMNS[kind]][index])
        values = shard.row(row)
        if kind != "images" and not all_finite(values):
            raise UsageError(f"{shard.path}: {kind} row {row} holds NaN or infinity")
        return values

    def _open(self, kind: str, number: int) -> Shard:
        shape = self.latent_shape if kind == "latents" else self.condition_shape
        dtypes = PIXELS if kind == "images" else DTYPES
        shard = Shard.open(shard_path(self.folder, kind, number), kind, shape, dtypes)
        rows = self.samples[ROW_COLUMNS[kind]][self.samples["shard"] == number]
        least = 0 if kind == "latents" else NO_CONDITION
        if rows.min() < least or rows.max() >= len(shard):
            raise UsageError(
                f"{shard.path}: has {len(shard)} rows, {SAMPLES} refers to rows "
                f"{rows.min()}..{rows.max()}"
            )
        return shard
