"""Appends to dataset folders: several processes at once, any of which may be killed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dso_jax.atomic import write_once
from dso_jax.dataset.layout import (
    CALLER_COLUMNS,
    FORMAT,
    KEY,
    META,
    NO_CONDITION,
    SHAPES,
    read_meta,
    shard_path,
)
from dso_jax.dataset.lock import SharedLock
from dso_jax.dataset.samples import (
    DEFAULTS,
    SAMPLES,
    STATUSES,
    UNLABELLED,
    find_parts,
    listed_shards,
    part_path,
    read_table,
    write_samples,
)
from dso_jax.dataset.shards import DTYPES, all_finite, write_shard
from dso_jax.errors import UsageError

logger = logging.getLogger(__name__)


class DatasetWriter:
    """Appends shards of labelled samples to a dataset folder; resumes where an earlier one stopped.

    Args:
        folder: made if it does not exist.
        meta: what made the samples (base, base_sha256, protocol, sampler, ...), JSON values. A
            folder that was begun with other values is refused: one dataset has one origin. With
            the shapes of the rows among them (`SHAPES`) it is written at once, else with the first
            append.

    Attributes:
        folder: where it is.
        meta: contents of meta.json.
        alone: whether no other process was writing to the folder when this one began.

    Raises:
        UsageError: the folder cannot be written, or was begun by something else.
    """

    def __init__(self, folder: str | Path, meta: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        # Through JSON once, so that tuples and lists compare equal with what a file gives back.
        self.meta = json.loads(json.dumps({"format": FORMAT, **meta}))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = SharedLock(self.folder)
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be made ({error.strerror})") from None
        self.alone = self._lock.alone
        self._keys: set[tuple[str, int, int]] = set()
        self._next = 0
        try:
            self._begin()
        finally:  # what is cleared must not be another writer's
            self._lock.share()

    def _begin(self) -> None:
        """Takes over what is there, and removes what no writer is at work at."""
        if self.shards():
            self._adopt(read_meta(self.folder))
            table = read_table(self.folder)
            self._keys = set(zip(*(table[name].tolist() for name in KEY), strict=True))
            self._next = int(max(table["shard"], default=-1)) + 1
            logger.info("%s: %d samples are already there", self.folder, len(self))
        elif self.alone:
            (self.folder / META).unlink(missing_ok=True)  # of a writer that came to nothing
        if self.alone:
            self._clear()
        if self._shaped:
            self._describe()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> set[tuple[str, int, int]]:
        """The (object, view, sample) already written: what a resumed run need not make again."""
        return set(self._keys)

    def shards(self) -> set[int]:
        """The shards that are there and labelled by now, whoever wrote them."""
        return listed_shards(self.folder)

    def unlabelled(self) -> dict[int, Path]:
        """The shards that wait for labels, and the tables of their samples."""
        done = self.shards()
        found = find_parts(self.folder, UNLABELLED)
        return {shard: path for shard, path in found.items() if shard not in done}

    def append(
        self,
        samples: Mapping[str, Any],
        latents: np.ndarray,
        conditions: np.ndarray | None = None,
        images: np.ndarray | None = None,
        *,
        shard: int | None = None,
        labelled: bool = True,
    ) -> dict[str, list]:
        """Write one shard: `n` samples of `m` images.

        Args:
            samples: column name -> (n,) values, for every name of CALLER_COLUMNS without a default;
                `condition_row` indexes `conditions` and `images`, or is NO_CONDITION.
            latents: (n, C, r, r, r) finite floats of 16 or 32 bits.
            conditions: (m, S, D) likewise; may be left out where there are images.
            images: (m, E, E, 3) uint8, prepared as `images.prepare` does, in the same order.
            shard: its number; the next free one if there is but one writer.
            labelled: False keeps the samples for `label`; no reader of the dataset sees them yet.

        Returns:
            The lines of the table.

        Raises:
            ValueError: columns, lengths, shapes or contents that break the contract.
        """
        given = {"latents": latents, "conditions": conditions, "images": images}
        parts = {kind: np.asarray(part) for kind, part in given.items() if part is not None}
        columns = self._check(samples, parts)
        if shard is None:
            shard = self._next
        count = len(parts["latents"])
        columns |= {"shard": [shard] * count, "row": list(range(count))}
        for kind, part in parts.items():
            write_shard(shard_path(self.folder, kind, shard), {kind: part})
        if not self._shaped:
            self.meta |= {SHAPES[kind]: list(part.shape[1:]) for kind, part in parts.items()}
            self._describe()
        if labelled:
            self.label(shard, columns)
        else:
            write_samples(part_path(self.folder, shard, UNLABELLED), columns)
        return columns

    def label(self, shard: int, columns: Mapping[str, Any]) -> None:
        """Write the lines of a shard: from now on it is part of the dataset.

        Args:
            shard: its number; a shard may be labelled without having any samples.
            columns: all of SCHEMA.
        """
        write_samples(part_path(self.folder, shard), columns)
        part_path(self.folder, shard, UNLABELLED).unlink(missing_ok=True)
        self._next = max(self._next, shard + 1)
        self._keys.update(zip(*(np.asarray(columns[name]).tolist() for name in KEY), strict=True))

    def finish(self) -> int:
        """Puts the parts of the table together in one file.

        For when all is there: what another writer adds at this very moment would be overlooked by
        a third one that does the same. A reader that comes in between sees everything.

        Returns:
            How many samples the folder holds, whoever wrote them.
        """
        if not self.shards():
            return 0
        parts = find_parts(self.folder)
        table = read_table(self.folder)
        count = len(table["shard"])
        if not parts or not count:
            return count
        write_samples(self.folder / SAMPLES, table)
        for shard in set(parts).intersection(table["shard"].tolist()):  # one without lines stays
            parts[shard].unlink(missing_ok=True)
        return count

    @property
    def _shaped(self) -> bool:
        """Whether meta.json says which rows a shard has, as it does once it is written."""
        return any(SHAPES[kind] in self.meta for kind in ("conditions", "images"))

    def _describe(self) -> None:
        """Writes meta.json, or compares it with that of a writer that was first."""
        if not write_once(self.folder / META, json.dumps(self.meta, indent=2) + "\n"):
            self._adopt(read_meta(self.folder))

    def _adopt(self, stored: dict[str, Any]) -> None:
        for key, value in self.meta.items():
            if stored.get(key) != value:
                raise UsageError(
                    f"{self.folder / META}: {key} is {stored.get(key)!r}, this run has "
                    f"{value!r}; write to another folder"
                )
        self.meta = stored

    def _clear(self) -> None:
        """Removes what a killed writer left, gigabytes perhaps."""
        # Ours end in .tmp, those of the safetensors library begin with it.
        for pattern in (".*.tmp", ".tmp*"):
            for left in self.folder.glob(pattern):
                left.unlink()

    def _check(
        self, samples: Mapping[str, Any], parts: Mapping[str, np.ndarray]
    ) -> dict[str, list]:
        count = len(parts["latents"])
        columns: dict[str, list[Any]] = {name: [value] * count for name, value in DEFAULTS.items()}
        columns |= {name: np.asarray(value).tolist() for name, value in samples.items()}
        if set(columns) != set(CALLER_COLUMNS):
            missing = sorted(set(CALLER_COLUMNS) - set(columns))
            unknown = sorted(set(columns) - set(CALLER_COLUMNS))
            raise ValueError(f"columns missing: {missing}, unknown: {unknown}")
        for name, values in columns.items():
            if len(values) != count:
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
            if self._shaped and (kind in parts) != (name in self.meta):
                raise ValueError(f"{kind}: every append has them, or none")
            if kind in parts:
                self._check_part(kind, parts[kind])
        new = list(zip(*(columns[name] for name in KEY), strict=True))
        if len(set(new)) < len(new) or self._keys.intersection(new):
            raise ValueError("a sample is given twice, or is there already")
        return columns

    def _check_part(self, kind: str, values: np.ndarray) -> None:
        name = SHAPES[kind]
        if name in self.meta and list(values.shape[1:]) != self.meta[name]:
            raise ValueError(f"{name} {values.shape[1:]}, the folder has {self.meta[name]}")
        if kind == "images":
            if values.dtype != np.uint8:
                raise ValueError(f"images are {values.dtype}, expected uint8")
        elif values.dtype not in DTYPES.values():
            raise ValueError(f"{name} comes from {values.dtype}, expected 16 or 32 bit floats")
        elif not all_finite(values):
            raise ValueError(f"NaN or infinity in what gives {name}")
