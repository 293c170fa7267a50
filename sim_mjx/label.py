"""Labelling: mesh files in, one row of a parquet table a file.

Every file gets a row. Contents that cannot be simulated make an `invalid` row with a reason, and
the rest goes on. Here are the parts that a call needs; `sim_mjx.job` makes a job of any size of
them, which survives being killed.
"""

from __future__ import annotations

import glob
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from sim_mjx import engines, mesh_files, rows
from sim_mjx.drop import Step
from sim_mjx.prepare import prepare
from sim_mjx.protocol import Protocol
from sim_mjx.task import PERTURBED, SCHEMA, Progress, Task

__all__ = ["PERTURBED", "SCHEMA", "LabelError", "Progress", "Task", "expand_paths", "label_files"]


class LabelError(ValueError):
    """Arguments of a labelling job that cannot be used."""


def expand_paths(patterns: Sequence[str]) -> list[pathlib.Path]:
    """Files for paths, globs and folders (searched recursively), each file once, in order.

    Raises:
        LabelError: a path or pattern names nothing, or a folder holds no mesh file.
    """
    found: dict[pathlib.Path, None] = {}
    for pattern in patterns:
        path = pathlib.Path(pattern)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if _is_mesh(p))
            missing = f"{pattern}: no mesh file in this folder ({', '.join(mesh_files.UP_AXIS)})"
        elif path.is_file():
            files, missing = [path], ""
        else:
            matches = sorted(glob.glob(pattern, recursive=True))
            files = [pathlib.Path(p) for p in matches if os.path.isfile(p)]
            missing = f"{pattern}: no such file, folder or match"
        if not files:
            raise LabelError(missing)
        found.update(dict.fromkeys(files))
    return list(found)


def label_files(
    paths: Iterable[pathlib.Path],
    protocol: Protocol,
    *,
    engine: str = "mjx",
    step: Step = "slim",
    workers: int | None = 0,
    progress: Progress | None = None,
) -> pa.Table:
    """Labels a few files under one protocol and keeps everything in memory.

    Args:
        paths: mesh files.
        protocol: what is simulated and what counts as stable.
        engine: `mjx`, or `mujoco` for C MuJoCo.
        step: of MJX, see `sim_mjx.drop`.
        workers: processes that read files; 0 reads in this one, None takes all cores.
        progress: called while files are read and while objects come to rest.

    Returns:
        A table with `SCHEMA`, one row a file, in order; the protocol's fields are in the schema's
        metadata.
    """
    task, report = Task(protocol, engines.resolve(engine, step)), progress or (lambda *_: None)
    block = []
    for item in prepare(paths, protocol, workers=workers):
        report("read", 1)
        block.append(item)
    table = rows.rows(block, rows.simulate(block, task, report), task, report)
    return table.replace_schema_metadata(protocol_metadata(protocol))


def protocol_metadata(protocol: Protocol) -> dict[str, str]:
    """What a table's schema says of the protocol behind the hash."""
    return {"protocol": json.dumps(protocol.to_dict(), sort_keys=True)}


def write_labels(table: pa.Table, path: pathlib.Path) -> None:
    """Writes the table so that `path` holds either the whole of it or what it held before."""
    write_whole(path, lambda part: pq.write_table(table, part))


def write_whole(
    path: pathlib.Path,
    write: Callable[[pathlib.Path], None],
    *,
    folder: pathlib.Path | None = None,
) -> None:
    """Lets `write` fill another file and renames it once its data are on the disk.

    Args:
        path: the file's final name.
        write: gets the name to write to.
        folder: where that is, on the same file system; beside `path` by default. A process that is
            killed leaves it there.
    """
    part = (folder or path.parent) / f".{path.name}.{uuid.uuid4().hex[:12]}.part"
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _is_mesh(path: pathlib.Path) -> bool:
    return path.is_file() and path.suffix.lower().lstrip(".") in mesh_files.UP_AXIS
