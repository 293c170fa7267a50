"""The plan of a labelling job: which files make which block, and what belongs to the job.

`labels.parquet.parts/job.json` says everything that decides the rows (files, protocol, engine and
its versions, block size, settings); a job that differs in any of it does not touch the parts. The
finished table carries the same record, so that doing a finished job again does nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sim_mjx.label import write_whole
from sim_mjx.task import Task

FORMAT = "dso-jax-labels-1"
_RECORD = "job.json"
# What a mismatch is called, by key of the record.
_NAMES = {
    "format": "format",
    "protocol": "protocol",
    "engine": "engine",
    "engine_version": "engine version",
    "files": "number of files",
    "digest": "files (names, sizes or times)",
    "block": "block size",
    "adjudicate": "re-adjudication",
    "perturbation": "perturbed starts",
    "preparation": "preparation",
}
# What a record leaves out.
_UNSAID = {"preparation": "host"}


class PlanError(ValueError):
    """A job that cannot be begun, resumed or written; the message names the file or setting."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Files in blocks, and the record of what decides their rows.

    Attributes:
        files: all files of the job, in the order of the table.
        record: everything that decides the rows, as plain values.
    """

    files: Sequence[pathlib.Path]
    record: dict[str, Any]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-len(self.files) // self.record["block"])

    def paths(self, block: int) -> Sequence[pathlib.Path]:
        """The files of a block."""
        size = self.record["block"]
        return self.files[block * size : (block + 1) * size]

    def missing(self, out: pathlib.Path, shard: tuple[int, int] = (0, 1)) -> list[int]:
        """Blocks of a shard that have no part yet."""
        index, count = shard
        done = {entry.name for entry in folder(out).glob("*.parquet")}
        wanted = range(index, self.blocks, count)
        return [block for block in wanted if self.part(out, block).name not in done]

    def part(self, out: pathlib.Path, block: int) -> pathlib.Path:
        """The file of a block's rows."""
        return folder(out) / f"{block:05d}.parquet"

    def rows(self, out: pathlib.Path, columns: list[str]) -> pa.Table:
        """Some columns of what is labelled so far: the table, or the parts that are there."""
        if self.finished(out):
            return pq.read_table(out, columns=columns)
        parts = sorted(folder(out).glob("*.parquet"))
        tables = [pq.read_table(part, columns=columns) for part in parts]
        return pa.concat_tables(tables) if tables else pa.table({name: [] for name in columns})

    def finished(self, out: pathlib.Path) -> bool:
        """Whether the table is there, is this very job's, and no run of it is under way."""
        if (folder(out) / _RECORD).exists():
            return False
        try:
            metadata = pq.read_schema(out).metadata or {}
            return json.loads(metadata.get(b"job", b"null")) == self.record
        except (FileNotFoundError, pa.ArrowInvalid, json.JSONDecodeError):
            return False

    def metadata(self) -> dict[str, str]:
        """What the finished table says of the job."""
        return {"job": json.dumps(self.record, sort_keys=True)}


def folder(out: pathlib.Path) -> pathlib.Path:
    """Where the parts of a table are kept until all are there."""
    return out.with_name(f"{out.name}.parts")


def make_plan(
    files: Sequence[pathlib.Path],
    task: Task,
    out: pathlib.Path,
    *,
    block: int | None = None,
    overwrite: bool = False,
) -> Plan:
    """Plans a job, or takes up the one that `out` was left with.

    Args:
        files: all files of the job, whichever shard is run here.
        task: what is done with every file.
        out: the table to be.
        block: files in a block; by default that of the job that is resumed, else the engine's.
        overwrite: begins anew; a table that is there stays until the new one is complete.

    Raises:
        PlanError: the parts beside `out` belong to a job that differs, or cannot be written.
    """
    record_path = folder(out) / _RECORD
    if overwrite:
        discard(out)
    before = _read(record_path) or _read_finished(out)
    size = block or (before or {}).get("block") or task.engine.block
    plan = Plan(files, _record(files, task, size))
    if plan.finished(out) and not overwrite:
        discard(out)  # a run may have been killed while it removed its parts
        return plan
    try:
        folder(out).mkdir(exist_ok=True)
        if not record_path.exists():
            text = json.dumps(plan.record, indent=1, sort_keys=True)
            write_whole(record_path, lambda path: _write_text(path, text))
    except OSError as error:
        raise PlanError(f"{folder(out)}: cannot write: {error}") from error
    _refuse_difference(folder(out), _read(record_path) or {}, plan.record)
    return plan


def discard(out: pathlib.Path) -> None:
    """Removes the parts beside `out`."""
    # Without a record the parts are no job's, should this be killed half-way.
    (folder(out) / _RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder(out), ignore_errors=True)


def _record(files: Sequence[pathlib.Path], task: Task, block: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path in files:
        try:
            stat = path.stat()
        except OSError:  # gone since it was listed: it becomes an `unreadable` row
            digest.update(f"{path}\0gone\n".encode(errors="surrogateescape"))
        else:
            line = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            digest.update(line.encode(errors="surrogateescape"))
    perturbation = task.perturbation
    record = {
        "format": FORMAT,
        "protocol": {"hash": task.protocol.hash(), **task.protocol.to_dict()},
        "engine": task.engine.name,
        "engine_version": task.engine.version,
        "files": len(files),
        "digest": digest.hexdigest(),
        "block": block,
        "adjudicate": task.adjudicate,
        "perturbation": None if perturbation is None else dataclasses.asdict(perturbation),
    }
    if task.preparation != _UNSAID["preparation"]:
        record["preparation"] = task.preparation
    return record


def _refuse_difference(where: pathlib.Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    for key, name in _NAMES.items():
        was, now = (record.get(key, _UNSAID.get(key)) for record in (old, new))
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            fields = [field for field in now if was.get(field) != now[field] and field != "hash"]
            was = ", ".join(f"{field} {was.get(field)}" for field in fields)
            now = ", ".join(f"{field} {now[field]}" for field in fields)
        change = "" if key == "digest" else f": {was} then, {now} now"
        raise PlanError(
            f"{where}: holds rows of an unfinished job with another {name}{change}; finish that "
            "job, choose another --out, or discard its rows with --overwrite"
        )


def _write_text(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanError(f"{path}: cannot read the record of the job: {error}") from error


def _read_finished(out: pathlib.Path) -> dict[str, Any] | None:
    try:
        return json.loads((pq.read_schema(out).metadata or {}).get(b"job", b"null"))
    except (OSError, pa.ArrowInvalid, json.JSONDecodeError):
        return None
