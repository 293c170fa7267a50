"""The table of a dataset: one line a sample, with where it came from and how it came to rest.

It is one file, samples.parquet, or one part for each shard, samples-00000.parquet and so on, which
several writers can add to without knowing of each other. What samples.parquet lists of a shard
stands in place of that shard's part, so a table can be changed or parts be put together at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dso_jax.atomic import write_atomic
from dso_jax.errors import UsageError

SAMPLES = "samples.parquet"
# Kinds of parts: those of the dataset, and of shards that wait for their labels.
LABELLED, UNLABELLED = "samples", "unlabelled"
STATUSES = ("rest", "moving", "invalid")
SCHEMA = pa.schema(
    [
        ("object", pa.string()),  # what the prompt shows: the unit that pairs are drawn within
        ("view", pa.int32()),  # which image of the object
        ("sample", pa.int32()),  # which draw for that image
        ("seed", pa.int64()),  # of the draw's noise
        ("shard", pa.int32()),  # file number of its latent and its condition
        ("row", pa.int32()),  # row of the latent in that shard
        ("condition_row", pa.int32()),  # row of the condition in that shard; -1: none
        ("tilt_deg", pa.float64()),  # angle between the object's up and the world's, at rest
        ("rotation_deg", pa.float64()),  # 2 acos w, 0..360, as DSO counts it
        ("status", pa.string()),  # rest, moving or invalid
        ("margin_deg", pa.float64()),  # smallest tipping angle of the upright object
        ("stable", pa.bool_()),  # the label under `protocol`; means nothing when invalid
        ("protocol", pa.string()),  # hash of the simulation protocol
        ("engine", pa.string()),  # engine and version that labelled it
        ("source", pa.string()),  # what was dropped: occupancy, mesh or unknown
    ]
)
# Tables written before a column existed lack it, and callers may leave it out.
DEFAULTS = {"source": "unknown"}
_PART = re.compile(r"[a-z]+-(\d{5,})\.parquet")


def write_samples(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a samples table atomically. Columns as in SCHEMA, all of one length."""
    count = len(columns[SCHEMA.names[0]])
    filled = {name: [value] * count for name, value in DEFAULTS.items()} | dict(columns)
    table = pa.table({name: filled[name] for name in SCHEMA.names}, schema=SCHEMA)
    write_atomic(path, lambda temporary: pq.write_table(table, temporary))


def part_path(folder: Path, shard: int, kind: str = LABELLED) -> Path:
    """Where the lines of one shard are, until samples.parquet lists them."""
    return folder / f"{kind}-{shard:05d}.parquet"


def find_parts(folder: Path, kind: str = LABELLED) -> dict[int, Path]:
    """Shard -> its part, in order."""
    found = ((_PART.fullmatch(path.name), path) for path in folder.glob(f"{kind}-*.parquet"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def read_table(folder: Path) -> dict[str, np.ndarray]:
    """The columns (N,) of a dataset folder's table, whether in one file or in parts, by shard.

    Raises:
        UsageError: there is none, or as `read_samples`.
    """
    parts = {shard: _read_if_there(path) for shard, path in find_parts(folder).items()}
    # After the parts: one that has just vanished has been put into this file before.
    whole = _read_if_there(folder / SAMPLES)
    if whole is None and not parts:
        raise UsageError(f"{folder / SAMPLES}: no such file")
    listed = set() if whole is None else set(whole["shard"].tolist())
    tables = [whole, *(part for shard, part in parts.items() if shard not in listed)]
    there = [table for table in tables if table is not None]
    columns = {name: np.concatenate([table[name] for table in there]) for name in SCHEMA.names}
    order = np.argsort(columns["shard"], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def listed_shards(folder: Path) -> set[int]:
    """The shards of which a dataset folder's table has lines, or a part without any."""
    parts = set(find_parts(folder))
    try:
        column = pq.read_table(folder / SAMPLES, columns=["shard"]).column("shard")
    except FileNotFoundError:
        return parts
    return parts | set(column.to_pylist())


def fingerprint(columns: Mapping[str, np.ndarray]) -> str:
    """sha256 of a table's contents; names the exact set of samples and labels."""
    digest = hashlib.sha256()
    for name in SCHEMA.names:
        values = columns[name]
        text = values.dtype.kind == "U"
        digest.update("\0".join(values.tolist()).encode() if text else values.tobytes())
        digest.update(name.encode())
    return digest.hexdigest()


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """Read one file of samples.

    Returns:
        Its columns as arrays (N,).

    Raises:
        UsageError: naming the file and column that is missing, cut short, empty or mistyped.
    """
    table = _read_if_there(path)
    if table is None:
        raise UsageError(f"{path}: no such file")
    return table


def _read_if_there(path: Path) -> dict[str, np.ndarray] | None:
    try:
        contents = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        table = pq.read_table(pa.BufferReader(contents))
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a parquet file, or cut short ({error})") from None
    for name, value in DEFAULTS.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * len(table), pa.string()))
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UsageError(f"{path}: no column {', '.join(missing)}")
    columns = {}
    for field in SCHEMA:
        column = table.column(field.name)
        if column.null_count:
            raise UsageError(f"{path}: {column.null_count} empty values in column {field.name}")
        if column.type != field.type:
            raise UsageError(f"{path}: column {field.name} is {column.type}, expected {field.type}")
        if pa.types.is_string(field.type):
            columns[field.name] = np.asarray(column.to_pylist(), dtype=np.str_)
        else:
            columns[field.name] = column.to_numpy()
    unknown = set(columns["status"].tolist()) - set(STATUSES)
    if unknown:
        raise UsageError(f"{path}: status {sorted(unknown)}, expected one of {STATUSES}")
    return columns
