"""The whole labelling job over planted files: every row is as planted, and none is made of NaN.

Used by `benchmarks/garbage.py --simulate`. The folder keeps the parts of an unfinished job, so that
the same command goes on after a kill.
"""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sim_mjx import Protocol, engines, job
from sim_mjx.plan import folder, make_plan
from sim_mjx.task import Task

MIB = 2**20
_SAMPLES = 40  # of memory, over a run
_PAGE = resource.getpagesize()


class Memory:
    """Resident memory of this process against files finished; a progress callback."""

    def __init__(self, files: int):
        self.every, self.done = max(1, files // _SAMPLES), 0
        self.samples: list[tuple[int, float]] = []

    def __call__(self, stage: str, count: int) -> None:
        if stage == "drop":
            before, self.done = self.done, self.done + count
            if before // self.every != self.done // self.every:
                self.samples.append((self.done, resident_mib()))


def resident_mib() -> float:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * _PAGE / MIB


def run(
    paths: Sequence[Path], out: Path, protocol: Protocol, workers: int | None, cache: Path | None
) -> dict[str, Any]:
    """Labels all files, or those that an earlier run has left, and says what it took."""
    task = Task(protocol, engines.resolve("mjx"))
    plan = make_plan(paths, task, out)
    left = 0 if plan.finished(out) else sum(len(plan.paths(b)) for b in plan.missing(out))
    clock, memory, began = job.Clock(), Memory(left), time.perf_counter()
    job.run(plan, task, out, workers=workers, cache=cache, progress=memory, clock=clock)
    own = resource.getrusage(resource.RUSAGE_SELF)
    workers_use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "files": left,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in (own, workers_use)),
        "clock": dataclasses.asdict(clock),
        "peak_mib": own.ru_maxrss / 1024,
        "peak_mib_of_a_worker": workers_use.ru_maxrss / 1024,
        "resident_mib_after_files": memory.samples,
        "engine": task.engine.record(),
    }


def remembered(place: Path, run_record: dict[str, Any]) -> list[dict[str, Any]]:
    """All runs of this place's job, with this one; those that were killed are missing."""
    path = place / "runs.json"
    runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    runs += [run_record] if run_record["files"] else []
    path.write_text(json.dumps(runs), encoding="utf-8")
    return runs


def verdict(
    out: Path, planted: list[tuple[Path, str, str]], *, so_far: bool = False
) -> dict[str, Any]:
    """Holds every row of the table against what was planted.

    Args:
        out: the table.
        planted: what it must say, in order.
        so_far: looks at the parts of an unfinished job, and at the files that they are about.

    Returns:
        Counts, and under `wrong` one line for each row that is not as it must be.
    """
    parts = sorted(folder(out).glob("*.parquet")) if so_far else [out]
    rows = pa.concat_tables([pq.read_table(part) for part in parts]).to_pylist()
    if so_far:
        labelled = {row["path"] for row in rows}
        planted = [one for one in planted if str(one[0]) in labelled]
    wrong, reasons, statuses = [], Counter(), Counter()
    labels: dict[str, set[bool]] = defaultdict(set)
    if len(rows) != len(planted):
        wrong.append(f"{len(rows)} rows for {len(planted)} files")
    for row, (path, fault, reason) in zip(rows, planted, strict=False):
        reasons[row["reason"] or ""] += 1
        statuses[row["status"]] += 1
        problem = _problem(row, path, reason)
        if problem:
            wrong.append(f"{path} ({fault or 'good'}): {problem}")
        if row["sha256"] and row["stable"] is not None:
            labels[row["sha256"]].add(row["stable"])
    return {
        "rows": len(rows),
        "bad_files": sum(bool(fault) for _, fault, _ in planted),
        "kinds_of_bad_files": len({fault for _, fault, _ in planted if fault}),
        "statuses": dict(statuses),
        "reasons": dict(reasons),
        "fallbacks": sum(row["inertia_fallback"] is not None for row in rows),
        "adjudicated": sum(row["adjudicated"] for row in rows),
        "different_bodies": len(labels),
        "bodies_whose_copies_disagree": sum(len(seen) > 1 for seen in labels.values()),
        "wrong": wrong,
    }


def _problem(row: dict[str, Any], path: Path, reason: str) -> str:
    """What is not as it must be in a row, or nothing."""
    if row["path"] != str(path) or (row["reason"] or "") != reason:
        return f"{row['path']}: {row['reason']!r}, not {reason!r}"
    if (row["status"] == "invalid") != bool(reason) or (row["stable"] is None) != bool(reason):
        return f"status {row['status']}, stable {row['stable']}, with reason {row['reason']!r}"
    numbers = [row[name] for name in ("tilt_deg", "rotation_deg", "mass")]
    if not reason and not all(value is not None and math.isfinite(value) for value in numbers):
        return f"a label {row['stable']} without numbers: {numbers}"
    return ""
