"""From prepared bodies to rows: simulate by shape bucket, settle close calls, fill in the columns.

Two steps, because they run at the same time on different blocks: `simulate` keeps the accelerator
busy, `rows` uses the processor.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sim_mjx import margin, perturb
from sim_mjx.bodies import RigidBody, concatenate
from sim_mjx.perturb import Survival
from sim_mjx.prepare import Prepared
from sim_mjx.protocol import Protocol
from sim_mjx.readjudicate import readjudicate
from sim_mjx.rest import INVALID, Rest
from sim_mjx.task import Progress, Task


@dataclasses.dataclass(frozen=True)
class Group:
    """Simulated objects of one shape bucket.

    Attributes:
        members: their positions in the block.
        bodies: what was dropped.
        rest: how it ended.
        survival: from perturbed starts, if any were asked for.
    """

    members: list[int]
    bodies: RigidBody
    rest: Rest
    survival: Survival | None


def simulate(block: Sequence[Prepared], task: Task, progress: Progress) -> list[Group]:
    """Drops the bodies of a block."""
    buckets: dict[Any, list[int]] = collections.defaultdict(list)
    for i, item in enumerate(block):
        if item.body is not None:
            table = item.body.polygons
            buckets[item.body.points.shape, table and table.window].append(i)
    progress("drop", len(block) - sum(map(len, buckets.values())))
    groups = []
    for members in buckets.values():
        bodies = concatenate([body for i in members if (body := block[i].body) is not None])
        keys = [block[i].sha256 for i in members]
        groups.append(_simulate_group(members, bodies, keys, task, progress))
    return groups


def _simulate_group(
    members: list[int], bodies: RigidBody, keys: list[str], task: Task, progress: Progress
) -> Group:
    perturbation = task.perturbation
    drops = _Drops(progress, 1 if perturbation is None else 1 + perturbation.starts)
    rest = task.engine.drop(bodies, task.protocol, drops)
    survival = None
    if perturbation is not None:

        def drop(turned: RigidBody, protocol: Protocol) -> Rest:
            return task.engine.drop(turned, protocol, drops)

        survival = perturb.survival(bodies, task.protocol, perturbation, drop, keys=keys)
    drops.finish(len(members))
    return Group(members, bodies, rest, survival)


class _Drops:
    """Turns finished drops, several of each object, into finished objects.

    Args:
        progress: is told of objects.
        each: drops of one object.
    """

    def __init__(self, progress: Progress, each: int) -> None:
        self._progress, self._each = progress, each
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
        """Tells of those that an engine gave up without a word."""
        self._progress("drop", objects - self._told)


def rows(
    block: Sequence[Prepared], groups: Sequence[Group], task: Task, progress: Progress
) -> pa.Table:
    """The table of a block, one row a file, in order."""
    constant = {"protocol": task.protocol.hash(), **task.engine.record()}
    filled: list[dict[str, Any]] = [
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
    for group in groups:
        for i, row in zip(group.members, _columns(group, task), strict=True):
            filled[i].update(row)
    _count(filled, progress)
    return pa.Table.from_pylist(filled, schema=task.schema())


def _columns(group: Group, task: Task) -> list[dict[str, Any]]:
    bodies, rest = group.bodies, group.rest
    again = np.zeros(len(bodies), bool)
    if task.adjudicate and not task.engine.exact:
        rest, again = readjudicate(bodies, rest, task.protocol)
    valid = rest.status != INVALID
    margins, azimuths = margin.static_margin(bodies)
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
        "tilt_first_deg": _numbers(np.where(again, group.rest.tilt_deg, np.nan)),
    }
    if group.survival is not None:
        columns |= {
            "survival": _numbers(group.survival.rate),
            "starts": group.survival.starts.tolist(),
            "tip_direction_deg": _numbers(group.survival.direction_deg),
            "tip_agreement": _numbers(group.survival.agreement),
            "margin_direction_deg": _numbers(azimuths),
        }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _count(filled: list[dict[str, Any]], progress: Progress) -> None:
    progress("stable", sum(row.get("stable") is True for row in filled))
    progress("unstable", sum(row.get("stable") is False for row in filled))
    progress("moving", sum(row["status"] == "moving" for row in filled))
    progress("invalid", sum(row["status"] == INVALID for row in filled))
    progress("adjudicated", sum(bool(row["adjudicated"]) for row in filled))


def _numbers(values: np.ndarray) -> list[float | None]:
    """Null rather than NaN, so that readers need not know which one means "no label"."""
    return [value if math.isfinite(value) else None for value in np.asarray(values).tolist()]
