"""Labels of meshes in place of those that a dataset's samples have, and what they replaced.

    FOLDER/samples.parquet           is replaced at once; `source` says `mesh` for what has changed
    FOLDER/labels-P-ENGINE.parquet   all that `dso label` found out about the meshes, protocol P
    FOLDER/labels-replaced.parquet   the labels that these samples had first, from their occupancy

A mesh belongs to the sample that DSO's layout names: CATEGORY/OBJECT/IMG_EEE.glb.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dso_jax.atomic import write_atomic
from dso_jax.dataset.layout import KEY
from dso_jax.dataset.samples import SAMPLES, SCHEMA, fingerprint, read_table, write_samples
from dso_jax.dso_folder.layout import object_rows
from dso_jax.errors import UsageError

REPLACED = "labels-replaced.parquet"
SOURCE = "mesh"
# What a label is made of; all else of a sample stays as it is.
COLUMNS = (
    *("tilt_deg", "rotation_deg", "status", "margin_deg"),
    *("stable", "protocol", "engine", "source"),
)
_NAME = re.compile(r"(\d{3})_(\d{3})")


class Replaced(NamedTuple):
    """What a replacement did.

    Attributes:
      meshes: samples that have the label of their mesh now.
      flipped: those that stood before and fall now, or the other way round.
      invalid: those whose mesh could not be labelled; they had a label before.
      left: samples without a mesh, which keep what they had.
    """

    meshes: int
    flipped: int
    invalid: int
    left: int


def table_path(folder: Path, protocol: str, engine: str) -> Path:
    """Where the labels of a dataset's meshes are kept.

    Args:
      protocol: name of a preset, or the path of a file.
      engine: its name.
    """
    return folder / f"labels-{Path(protocol).stem}-{engine}.parquet"


def rows_of(
    folder: Path, samples: Mapping[str, np.ndarray], meshes: Sequence[str | Path]
) -> np.ndarray:
    """(M,) the row of the table that each mesh belongs to.

    Args:
      folder: of the dataset, for messages.
      samples: columns of its table.

    Raises:
      UsageError: a name outside the layout, a mesh of no sample, or two of one.
    """
    columns = {name: samples[name].tolist() for name in ("view", "sample")}
    known = {
        (place, columns["view"][row], columns["sample"][row]): row
        for place, rows in object_rows(folder, samples).items()
        for row in rows.tolist()
    }
    owner: dict[int, str | Path] = {}
    for mesh in meshes:
        path = Path(mesh)
        match = _NAME.fullmatch(path.stem)
        if match is None or len(path.parts) < 3:
            raise UsageError(f"{mesh}: expected a name CATEGORY/OBJECT/IMG_EEE.glb")
        row = known.get(("/".join(path.parts[-3:-1]), int(match[1]), int(match[2])))
        if row is None:
            raise UsageError(f"{mesh}: is of no sample in {folder}")
        if row in owner:
            raise UsageError(f"{mesh}: is of the same sample as {owner[row]}")
        owner[row] = mesh
    return np.array(list(owner), np.int64)


def replace(folder: Path, labels: pa.Table) -> Replaced:
    """Gives the samples of a dataset the labels of their meshes.

    Doing it again changes nothing. Must not run while somebody else changes the table; writers that
    append shards do not.

    Args:
      labels: what `dso label` writes.

    Raises:
      UsageError: see `rows_of`, or the folder cannot be written.
    """
    before = read_table(folder)
    rows = rows_of(folder, before, labels["path"].to_pylist())
    after = dict(before)
    for name, values in _columns(labels).items():
        column = before[name].astype(object)  # texts may be longer than those before
        column[rows] = values
        after[name] = np.array(column.tolist())
    try:
        _keep(folder, before, rows)
        if fingerprint(after) != fingerprint(before):
            write_samples(folder / SAMPLES, {name: after[name].tolist() for name in SCHEMA.names})
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error
    had, has = (columns["status"][rows] != "invalid" for columns in (before, after))
    flipped = had & has & (before["stable"][rows] != after["stable"][rows])
    return Replaced(
        meshes=len(rows),
        flipped=int(flipped.sum()),
        invalid=int((had & ~has).sum()),
        left=len(before["view"]) - len(rows),
    )


def _columns(labels: pa.Table) -> dict[str, list]:
    """A table of labels as a dataset has them: without nulls."""
    found = {name: labels[name].to_pylist() for name in COLUMNS if name in labels.column_names}
    empty = {"tilt_deg": np.nan, "rotation_deg": np.nan, "margin_deg": 0.0, "stable": False}
    for name, value in empty.items():
        found[name] = [value if one is None else one for one in found[name]]
    versions = labels["engine_version"].to_pylist()
    pairs = zip(found["engine"], versions, strict=True)
    found["engine"] = [f"{engine} {version}" for engine, version in pairs]
    return found | {"source": [SOURCE] * len(labels)}


def _keep(folder: Path, before: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
    """Adds the labels that these samples have, unless they are a mesh's, to the replaced ones."""
    names = [*KEY, *COLUMNS]
    path = folder / REPLACED
    schema = pa.schema([SCHEMA.field(name) for name in names])
    kept = pq.read_table(path, schema=schema) if path.exists() else schema.empty_table()
    known = set(zip(*(kept[name].to_pylist() for name in KEY), strict=True))
    lines = zip(*(before[name][rows].tolist() for name in names), strict=True)
    source = names.index("source")
    new = [line for line in lines if line[source] != SOURCE and line[: len(KEY)] not in known]
    if not new:
        return
    added = pa.Table.from_pylist([dict(zip(names, line, strict=True)) for line in new], schema)
    write_atomic(path, lambda part: pq.write_table(pa.concat_tables([kept, added]), part))
