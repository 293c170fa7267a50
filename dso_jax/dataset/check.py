"""Everything that is wrong with a dataset folder, in one report."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

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
from dso_jax.dataset.samples import SAMPLES, UNLABELLED, find_parts, read_table
from dso_jax.dataset.shards import DTYPES, PIXELS, Shard, all_finite
from dso_jax.errors import UsageError

_SHOWN = 5  # samples named in a problem; it says how many there are

Progress = Callable[[int, int], None]  # samples dealt with, and of how many


class Checked(NamedTuple):
    """The outcome of a check.

    Attributes:
        samples: listed in the table.
        problems: what makes the dataset, or part of it, unusable; empty: all is well.
        notes: what is odd but does no harm.
    """

    samples: int
    problems: list[str]
    notes: list[str]


def check(folder: Path, progress: Progress | None = None) -> Checked:
    """Reads all of a dataset folder.

    Args:
        progress: called with the number of samples whose latents have been read, and of all.

    Raises:
        UsageError: there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such dataset folder")
    problems: list[str] = []
    shapes = {}
    try:
        meta = read_meta(folder)
        for kind in kinds(meta):
            shapes[kind] = row_shape(folder, meta, SHAPES[kind])
    except UsageError as error:
        problems.append(str(error))
    try:
        samples = read_table(folder)
    except UsageError as error:
        return Checked(0, [*problems, str(error)], [])
    problems += _check_table(folder, samples)
    if "latents" in shapes:
        for kind, shape in shapes.items():
            problems += _check_shards(folder, samples, kind, shape, progress)
    return Checked(len(samples["object"]), problems, list(_unlisted(folder, samples)))


def _check_table(folder: Path, samples: dict[str, np.ndarray]) -> Iterator[str]:
    labelled = samples["status"] != "invalid"
    angles = np.stack([samples["tilt_deg"], samples["rotation_deg"]])
    bad = {
        "invalid, but marked as stable": ~labelled & samples["stable"],
        "labelled, but with no angle": labelled & ~np.isfinite(angles).any(axis=0),
        "with a negative number": (samples["view"] < 0) | (samples["sample"] < 0),
        "listed twice": _repeated([samples[name] for name in KEY]),
        "with the latent of another sample": _repeated([samples["shard"], samples["row"]]),
    }
    for what, rows in bad.items():
        if rows.any():
            yield f"{folder / SAMPLES}: {_names(samples, np.flatnonzero(rows))} {what}"


def _check_shards(
    folder: Path,
    samples: dict[str, np.ndarray],
    kind: str,
    shape: tuple[int, ...],
    progress: Progress | None,
) -> Iterator[str]:
    """Every row that a sample refers to; one shard is in memory at a time, row by row."""
    passed = 0
    first_with: dict[bytes, int] = {}  # digest of a latent -> the first sample that has it
    copies = []
    for number in np.unique(samples["shard"]).tolist():
        members = np.flatnonzero(samples["shard"] == number)
        rows = samples[ROW_COLUMNS[kind]][members]
        used = rows != NO_CONDITION if kind != "latents" else np.ones(len(rows), bool)
        members, rows = members[used], rows[used]
        try:
            dtypes = PIXELS if kind == "images" else DTYPES
            shard = Shard.open(shard_path(folder, kind, number), kind, shape, dtypes)
        except UsageError as error:
            yield f"{error}; {_names(samples, members)} need it"
            continue
        within = (rows >= 0) & (rows < len(shard))
        if not within.all():
            yield (
                f"{shard.path}: has {len(shard)} rows, but {SAMPLES} wants others for "
                f"{_names(samples, members[~within])}"
            )
        finite = {}
        for row in np.unique(rows[within]).tolist():
            values = shard.row(row)
            finite[row] = kind == "images" or all_finite(values)
            if kind == "latents":
                sample = int(members[rows == row][0])
                digest = hashlib.blake2b(values.tobytes(), digest_size=16).digest()
                if first_with.setdefault(digest, sample) != sample:
                    copies += [first_with[digest], sample]
        broken = members[within][[not finite[row] for row in rows[within].tolist()]]
        if len(broken):
            yield f"{shard.path}: NaN or infinity in the {kind} of {_names(samples, broken)}"
        passed += len(members)
        if progress and kind == "latents":
            progress(passed, len(samples["object"]))
    if copies:
        yield f"{folder}: the same latent in {_names(samples, np.unique(copies))}"


def _unlisted(folder: Path, samples: dict[str, np.ndarray]) -> Iterator[str]:
    """Shards that no sample refers to: what an append leaves behind when it is killed."""
    listed = set(samples["shard"].tolist())
    waiting = find_parts(folder, UNLABELLED)
    for path in waiting.values():
        yield f"{path}: sampled and not labelled yet; dso generate goes on with it"
    for path in sorted(folder.glob("*.safetensors")):
        match = re.fullmatch(r"(?:latents|conditions|images)-(\d{5,})\.safetensors", path.name)
        if match is None or int(match[1]) not in listed.union(waiting):
            yield f"{path}: no sample refers to it; the next append may overwrite it"


def _repeated(columns: list[np.ndarray]) -> np.ndarray:
    """(N,) bool: rows that occur before or after."""
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in columns])
    _, inverse, counts = np.unique(codes, axis=1, return_inverse=True, return_counts=True)
    return counts[inverse.reshape(-1)] > 1


def _names(samples: dict[str, np.ndarray], rows: np.ndarray) -> str:
    """Samples by name, the first few of many."""
    named = [":".join(str(samples[name][row]) for name in KEY) for row in rows[:_SHOWN]]
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return ", ".join(named) + more
