"""From prepared bodies to rows: drop by shape bucket, settle close calls, fill in the columns.

Two halves, because they run at the same time on different bodies: `groups` and `put` feed the
engine, `fill` and `table` use the processor.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sim_mjx import margin
from sim_mjx.bodies import RigidBody
from sim_mjx.calls import CallStream
from sim_mjx.packed import by_layout
from sim_mjx.perturb import Starts, body_bytes
from sim_mjx.prepare import Prepared
from sim_mjx.readjudicate import readjudicate
from sim_mjx.rest import INVALID, Rest
from sim_mjx.stream import DropStream
from sim_mjx.task import Progress, Task


@dataclasses.dataclass(eq=False)
class Group:
    """Objects of one shape bucket.

    Attributes:
        members: their positions in the block.
        bodies: what is dropped.
        starts: perturbed ones, if any were asked for.
        rest: how the upright ones ended.
        left: batches in the engine.
    """

    members: list[int]
    bodies: RigidBody
    starts: Starts | None
    rest: Rest | None = None
    left: int = 1

    @property
    def size(self) -> int:
        """Bytes of the bodies."""
        return len(self.bodies) * body_bytes(self.bodies)

    def take(self, part: Any, rest: Rest) -> bool:
        """Takes the result of one of its batches; returns whether it was the last one."""
        if self.starts is None or part is None:
            self.rest = rest
        else:
            self.starts.note(part, rest)
        self.left -= 1
        return not self.left


def groups(block: Sequence[Prepared], task: Task) -> list[Group]:
    """The bodies of a block by shape bucket."""
    made = []
    for members, bodies in by_layout(item.packed for item in block):
        group = Group(members, bodies, None)
        if task.perturbation is not None:
            keys = [block[i].sha256 for i in members]
            group.starts = Starts(bodies, [task.perturbation], keys)
            group.left += group.starts.calls
        made.append(group)
    return made


def put(group: Group, stream: DropStream | CallStream) -> None:
    """Drops a group; results come tagged with it and with the part that `Group.take` wants."""
    stream.put(group.bodies, tag=(group, None))
    if group.starts is not None:
        for chosen, turned in group.starts.batches():
            stream.put(turned, tag=(group, chosen))


def simulate(block: Sequence[Prepared], task: Task, progress: Progress) -> list[Group]:
    """Drops the bodies of one block and waits for them."""
    drops, made = Drops(task, progress), groups(block, task)
    with task.engine.stream(task.protocol, drops) as stream:
        for group in made:
            put(group, stream)
        stream.close()
        for (group, part), rest in stream.results():
            group.take(part, rest)
    drops.finish(len(block))
    return made


class Drops:
    """Turns finished drops, several of each object where starts are perturbed, into objects.

    Args:
        task: says how many drops make an object.
        progress: is told of objects.
    """

    def __init__(self, task: Task, progress: Progress) -> None:
        starts = 0 if task.perturbation is None else task.perturbation.starts
        self._progress, self._each = progress, 1 + starts
        self._drops = self._told = 0
        self._lock = threading.Lock()  # engines call from several threads

    def __call__(self, count: int) -> None:
        with self._lock:
            self._drops += count
            new = self._drops // self._each - self._told
            self._told += new
        if new:
            self._progress("drop", new)

    def finish(self, objects: int) -> None:
        """Tells of those that need no drop, or that an engine gave up without a word."""
        self._progress("drop", objects - self._told)


def rows(
    block: Sequence[Prepared], made: Sequence[Group], task: Task, progress: Progress
) -> pa.Table:
    """The table of a block, one row a file, in order."""
    filled = blank(block, task)
    for group in made:
        fill(filled, group, task)
    return table(filled, task, progress)


def blank(block: Sequence[Prepared], task: Task) -> list[dict[str, Any]]:
    """Rows of a block that say why each file has no label."""
    constant = {"protocol": task.protocol.hash(), **task.engine.record()}
    return [
        {
            "path": str(item.path),
            "sha256": item.sha256 or None,
            "status": INVALID,
            "reason": item.reason,
            "adjudicated": False,
            **constant,
        }
        for item in block
    ]


def fill(filled: list[dict[str, Any]], group: Group, task: Task) -> None:
    """Puts what came of a group into its rows."""
    for i, row in zip(group.members, _columns(group, task), strict=True):
        filled[i].update(row)


def table(filled: list[dict[str, Any]], task: Task, progress: Progress) -> pa.Table:
    """Rows as a table; tells of them."""
    progress("stable", sum(row.get("stable") is True for row in filled))
    progress("unstable", sum(row.get("stable") is False for row in filled))
    progress("moving", sum(row["status"] == "moving" for row in filled))
    progress("invalid", sum(row["status"] == INVALID for row in filled))
    progress("adjudicated", sum(bool(row["adjudicated"]) for row in filled))
    return pa.Table.from_pylist(filled, schema=task.schema())


def _columns(group: Group, task: Task) -> list[dict[str, Any]]:
    bodies, first = group.bodies, group.rest
    assert first is not None, "a group that was not dropped"
    rest, again = first, np.zeros(len(bodies), bool)
    if task.adjudicate and not task.engine.exact:
        rest, again = readjudicate(bodies, rest, task.protocol)
    valid = rest.status != INVALID
    margins, azimuths = margin.told_margin(bodies)
    stable = rest.stable(task.protocol)
    columns: dict[str, list[Any]] = {
        "status": rest.status.tolist(),
        "reason": rest.reason.tolist(),
        "stable": [bool(s) if v else None for s, v in zip(stable, valid, strict=True)],
        "tilt_deg": _numbers(rest.tilt_deg),
        "rotation_deg": _numbers(rest.rotation_deg),
        "margin_deg": _numbers(margins),
        "steps": rest.steps.tolist(),
        "points": [origin.hull_points for origin in bodies.provenance],
        "mass": _numbers(bodies.mass),
        "inertia": [origin.inertia for origin in bodies.provenance],
        "inertia_fallback": [origin.fallback for origin in bodies.provenance],
        "adjudicated": again.tolist(),
        "tilt_first_deg": _numbers(np.where(again, first.tilt_deg, np.nan)),
    }
    if group.starts is not None:
        (survival,) = group.starts.survivals(task.protocol)
        columns |= {
            "survival": _numbers(survival.rate),
            "starts": survival.starts.tolist(),
            "tip_direction_deg": _numbers(survival.direction_deg),
            "tip_agreement": _numbers(survival.agreement),
            "margin_direction_deg": _numbers(azimuths),
        }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _numbers(values: np.ndarray) -> list[float | None]:
    """Null rather than NaN, so that readers need not know which one means "no label"."""
    return [value if math.isfinite(value) else None for value in np.asarray(values).tolist()]
