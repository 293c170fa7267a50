"""The dataset folder: samples with their labels, latents and conditions.

    FOLDER/samples.parquet                one line a sample, columns of samples.SCHEMA
    FOLDER/latents-00000.safetensors      tensor `latents` (rows, C, r, r, r), one shard an append
    FOLDER/conditions-00000.safetensors   tensor `conditions` (rows, S, D), the views of that append
    FOLDER/images-00000.safetensors       tensor `images` (rows, E, E, 3): their prepared pictures
    FOLDER/meta.json                      what made it: base, protocol, sampler, shapes

A folder has conditions, images or both; from images a training run computes conditions again.

A shard is written once and never touched again. `samples.parquet` is replaced after the shards of
an append are in place, so it is the commit point: after a kill at any moment, whatever it lists is
there, and the writer goes on behind it (a shard that it does not list yet is overwritten).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dso_jax.atomic import write_text
from dso_jax.errors import UsageError
from dso_jax.samples import SCHEMA, STATUSES, read_samples, write_samples
from dso_jax.shards import DTYPES, PIXELS, Shard, all_finite, write_shard

logger = logging.getLogger(__name__)

FORMAT = "dso-jax-dataset-1"
SAMPLES = "samples.parquet"
KEY = ("object", "view", "sample")  # names a sample
WRITER_COLUMNS = ("shard", "row")  # filled in by the writer
CALLER_COLUMNS = tuple(name for name in SCHEMA.names if name not in WRITER_COLUMNS)
# Kind of shard -> the column that says which of its rows a sample uses.
ROW_COLUMNS = {"latents": "row", "conditions": "condition_row", "images": "condition_row"}
# Kind of shard -> the key of meta.json with the shape of its rows.
SHAPES = {"latents": "latent_shape", "conditions": "condition_shape", "images": "image_shape"}
NO_CONDITION = -1  # in `condition_row`: the latent can be learned from, under another view's image
# Folders up to this size are searched for NaN before any work; larger ones as they are read.
SCAN_LIMIT_BYTES = 256 * 2**20


class Dataset:
    """A dataset folder, open for reading.

    Attributes:
        folder: where it is.
        meta: contents of meta.json.
        samples: column name -> array (N,), one entry a sample, in the order they were written.
        fingerprint: sha256 of samples.parquet; names the exact set of samples.
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
        self.fingerprint, self.samples = read_samples(self.folder / SAMPLES)
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


class DatasetWriter:
    """Appends shards of labelled samples to a dataset folder; resumes where an earlier one stopped.

    Args:
        folder: made if it does not exist.
        meta: what made the samples (base, base_sha256, protocol, sampler, ...), JSON values. A
            folder that was begun with other values is refused: one dataset has one origin.

    Raises:
        UsageError: the folder cannot be written, or was begun by something else.
    """

    def __init__(self, folder: str | Path, meta: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        # Through JSON once, so that tuples and lists compare equal with what a file gives back.
        self.meta = json.loads(json.dumps({"format": FORMAT, **meta}))
        self._columns: dict[str, list] = {name: [] for name in SCHEMA.names}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be made ({error.strerror})") from None
        # Left by a writer that was killed, gigabytes perhaps: ours end in .tmp, those of the
        # safetensors library begin with it.
        for pattern in (".*.tmp", ".tmp*"):
            for left in self.folder.glob(pattern):
                left.unlink()
        if (self.folder / SAMPLES).exists():
            self._resume()

    def __len__(self) -> int:
        return len(self._columns["object"])

    @property
    def keys(self) -> set[tuple[str, int, int]]:
        """The (object, view, sample) already written: what a resumed run need not make again."""
        columns = (self._columns[name] for name in KEY)
        return set(zip(*columns, strict=True))

    def append(
        self,
        samples: Mapping[str, Any],
        latents: np.ndarray,
        conditions: np.ndarray | None = None,
        images: np.ndarray | None = None,
    ) -> None:
        """Write one shard: `n` samples of `m` images.

        Args:
            samples: column name -> (n,) values, for every name of CALLER_COLUMNS; `condition_row`
                indexes `conditions` and `images`, or is NO_CONDITION.
            latents: (n, C, r, r, r) finite floats of 16 or 32 bits.
            conditions: (m, S, D) likewise; may be left out where there are images.
            images: (m, E, E, 3) uint8, prepared as `images.prepare` does, in the same order.

        Raises:
            ValueError: columns, lengths, shapes or contents that break the contract.
        """
        given = {"latents": latents, "conditions": conditions, "images": images}
        parts = {kind: np.asarray(part) for kind, part in given.items() if part is not None}
        latents = parts["latents"]
        columns = self._check(samples, parts)
        shard = max(self._columns["shard"], default=-1) + 1
        columns |= {"shard": [shard] * len(latents), "row": list(range(len(latents)))}
        for kind, part in parts.items():
            write_shard(shard_path(self.folder, kind, shard), {kind: part})
        if shard == 0:
            self.meta |= {SHAPES[kind]: list(part.shape[1:]) for kind, part in parts.items()}
            text = json.dumps(self.meta, indent=2) + "\n"
            write_text(self.folder / "meta.json", text)
        grown = {name: self._columns[name] + list(columns[name]) for name in SCHEMA.names}
        write_samples(self.folder / SAMPLES, grown)
        self._columns = grown

    def _resume(self) -> None:
        stored = read_meta(self.folder)
        for key, value in self.meta.items():
            if stored.get(key) != value:
                raise UsageError(
                    f"{self.folder / 'meta.json'}: {key} is {stored.get(key)!r}, this run has "
                    f"{value!r}; write to another folder"
                )
        self.meta = stored
        _, samples = read_samples(self.folder / SAMPLES)
        self._columns = {name: samples[name].tolist() for name in SCHEMA.names}
        logger.info("%s: %d samples are already there", self.folder, len(self))

    def _check(
        self, samples: Mapping[str, Any], parts: Mapping[str, np.ndarray]
    ) -> dict[str, list]:
        if set(samples) != set(CALLER_COLUMNS):
            missing = sorted(set(CALLER_COLUMNS) - set(samples))
            unknown = sorted(set(samples) - set(CALLER_COLUMNS))
            raise ValueError(f"columns missing: {missing}, unknown: {unknown}")
        columns = {name: np.asarray(value).tolist() for name, value in samples.items()}
        for name, values in columns.items():
            if len(values) != len(parts["latents"]):
                count = len(parts["latents"])
                raise ValueError(f"{name} has {len(values)} values for {count} latents")
        unknown = set(columns["status"]) - set(STATUSES)
        if unknown:
            raise ValueError(f"status {sorted(unknown)}, expected one of {STATUSES}")
        seen = [len(parts[kind]) for kind in ("conditions", "images") if kind in parts]
        if not seen or min(seen) != max(seen):
            raise ValueError("expected conditions, images, or as many of both")
        rows = columns["condition_row"]
        if rows and not NO_CONDITION <= min(rows) <= max(rows) < seen[0]:
            raise ValueError(f"condition_row outside 0..{seen[0] - 1}")
        for kind, name in SHAPES.items():
            if self._columns["object"] and (kind in parts) != (name in self.meta):
                raise ValueError(f"{kind}: every append has them, or none")
            if kind not in parts:
                continue
            values = parts[kind]
            if name in self.meta and list(values.shape[1:]) != self.meta[name]:
                raise ValueError(f"{name} {values.shape[1:]}, the folder has {self.meta[name]}")
            if kind == "images":
                if values.dtype != np.uint8:
                    raise ValueError(f"images are {values.dtype}, expected uint8")
            elif values.dtype not in DTYPES.values():
                raise ValueError(f"{name} comes from {values.dtype}, expected 16 or 32 bit floats")
            elif not all_finite(values):
                raise ValueError(f"NaN or infinity in what gives {name}")
        new = list(zip(*(columns[name] for name in KEY), strict=True))
        if len(set(new)) < len(new) or self.keys.intersection(new):
            raise ValueError("a sample is given twice, or is there already")
        return columns


def shard_path(folder: Path, kind: str, shard: int) -> Path:
    """Where a shard of latents or conditions is."""
    return folder / f"{kind}-{shard:05d}.safetensors"


def read_meta(folder: Path) -> dict[str, Any]:
    """Contents of a dataset folder's meta.json.

    Raises:
        UsageError: there is none, or it is not one of ours.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else meta
        raise UsageError(f"{path}: format is {found!r}, expected {FORMAT!r}")
    return meta


def kinds(meta: Mapping[str, Any]) -> list[str]:
    """What a folder keeps of each shard: latents, and conditions, images or both.

    A folder that names neither is taken for one of conditions, which `row_shape` then misses.
    """
    seen = [kind for kind in ("conditions", "images") if SHAPES[kind] in meta]
    return ["latents", *(seen or ["conditions"])]


def row_shape(folder: Path, meta: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Shape of a shard's rows, from one of `SHAPES` in meta.json.

    Raises:
        UsageError: it says nothing of use.
    """
    shape = meta.get(key)
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        raise UsageError(f"{folder / 'meta.json'}: {key} is {shape!r}, expected a list of sizes")
    return tuple(shape)
