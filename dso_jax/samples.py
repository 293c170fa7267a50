"""The table of a dataset: one line a sample, with where it came from and how it came to rest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dso_jax.atomic import write_atomic
from dso_jax.errors import UsageError

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
    ]
)


def write_samples(path: Path, columns: Mapping[str, Sequence]) -> None:
    """Write a samples table atomically. Columns as in SCHEMA, all of one length."""
    table = pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
    write_atomic(path, lambda temporary: pq.write_table(table, temporary))


def read_samples(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read a samples table.

    Returns:
        The file's sha256, and its columns as arrays (N,).

    Raises:
        UsageError: naming the file and column that is missing, cut short, empty or mistyped.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    contents = path.read_bytes()
    try:
        table = pq.read_table(pa.BufferReader(contents))
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a parquet file, or cut short ({error})") from None
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
    return hashlib.sha256(contents).hexdigest(), columns
