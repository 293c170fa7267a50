"""Bodies dropped upright and from perturbed starts: the columns of stability.

Legend: B bodies of one shape bucket, N objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dso_jax.evaluation.labels import SURVIVAL
from dso_jax.evaluation.parts import Columns
from sim_mjx import margin, perturb
from sim_mjx.bodies import RigidBody
from sim_mjx.engines import Engine
from sim_mjx.packed import by_layout
from sim_mjx.perturb import Perturbation
from sim_mjx.prepare import Prepared
from sim_mjx.protocol import Protocol
from sim_mjx.readjudicate import readjudicate
from sim_mjx.rest import INVALID, MOVING, Rest

# The paper's angles, radians, and starts at each.
THETAS = (0.01, 0.02, 0.04, 0.08)
STARTS = 100
# Margins in millimetres are those of an object with a longest side of so many.
SIDE_MM = 100.0
POSE = 7

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Drops:
    """How objects are dropped.

    Attributes:
        protocol: what is simulated and what counts as stable.
        engine: what simulates it.
        perturbations: starts to try beside the upright one.
    """

    protocol: Protocol
    engine: Engine
    perturbations: tuple[Perturbation, ...] = ()

    @property
    def each(self) -> int:
        """Drops of one object."""
        return 1 + sum(one.starts for one in self.perturbations)

    def origin(self) -> dict[str, Any]:
        """Everything that decides a result, beside the objects and their company."""
        return {
            "protocol": self.protocol.hash(),
            **self.engine.record(),
            "perturbations": [dataclasses.asdict(one) for one in self.perturbations],
        }


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Bodies of one shape.

    Attributes:
        members: their positions among all objects.
        bodies: the bodies.
        keys: hexadecimal name of each, which its perturbed starts depend on.
        reasons: per body None, or why it is invalid already; None if all can be dropped.
    """

    members: Sequence[int]
    bodies: RigidBody
    keys: Sequence[str]
    reasons: Sequence[str | None] | None = None


def buckets(prepared: Sequence[Prepared]) -> list[Bucket]:
    """Prepared files by shape; those without a body are left out."""
    return [
        Bucket(members, bodies, [prepared[i].sha256 for i in members])
        for members, bodies in by_layout(one.packed for one in prepared)
    ]


def survival_column(theta: float) -> str:
    """The name of the column of an angle."""
    return f"{SURVIVAL}{theta:g}"


def empty(count: int, perturbations: Sequence[Perturbation]) -> Columns:
    """The columns of objects that were not dropped."""
    nan = np.full(count, np.nan)
    columns: Columns = {
        "status": np.full(count, INVALID, object),
        "reason": np.full(count, "", object),
        "stable": np.zeros(count, bool),
        "moving": np.zeros(count, bool),
        **{
            name: nan.copy()
            for name in ("tilt_deg", "rotation_deg", "margin_deg", "margin_mm", "seconds")
        },
        **{survival_column(one.theta): nan.copy() for one in perturbations},
    }
    return columns | {"pose": np.full((count, POSE), np.nan)}


def drop(
    count: int, found: Sequence[Bucket], task: Drops, progress: Progress | None = None
) -> Columns:
    """Drops the objects of all buckets.

    Args:
        count: N; objects in no bucket keep `empty`'s values.
        found: what can be dropped.
        task: how.
        progress: called with finished drops, `task.each` an object.

    Returns:
        name -> (N,), and `pose` (N, 7).
    """
    columns = empty(count, task.perturbations)
    for bucket in found:
        for name, values in _drop(bucket, task, progress).items():
            columns[name][np.asarray(bucket.members, int)] = values
    return columns


def _drop(bucket: Bucket, task: Drops, progress: Progress | None) -> Columns:
    protocol, bodies = task.protocol, bucket.bodies
    valid = np.array([reason is None for reason in bucket.reasons or [None] * len(bodies)])
    chosen = bodies[valid]
    rest = task.engine.drop(chosen, protocol, progress)
    if not task.engine.exact:
        rest, _ = readjudicate(chosen, rest, protocol)
    columns = _stability(chosen, rest, protocol)
    if task.perturbations and len(chosen):

        def turned(turned: RigidBody, protocol: Protocol) -> Rest:
            return task.engine.drop(turned, protocol, progress)

        keys = [key for key, good in zip(bucket.keys, valid, strict=True) if good]
        found = perturb.survivals(chosen, protocol, task.perturbations, turned, keys=keys)
        for one, survival in zip(task.perturbations, found, strict=True):
            columns[survival_column(one.theta)] = survival.rate
    if valid.all():
        return columns
    whole = empty(len(bodies), task.perturbations)
    whole["reason"] = np.array([reason or "" for reason in bucket.reasons or ()], object)
    for name, values in columns.items():
        whole[name][valid] = values
    return whole


def _stability(bodies: RigidBody, rest: Rest, protocol: Protocol) -> Columns:
    margins = margin.static_margin_deg(bodies)
    invalid = rest.status == INVALID
    margins[invalid] = np.nan
    pose = np.concatenate([rest.position, rest.quaternion], axis=1)
    return {
        "status": rest.status,
        "reason": np.array([reason or "" for reason in rest.reason], object),
        "stable": np.asarray(rest.stable(protocol), bool),
        "moving": rest.status == MOVING,
        "tilt_deg": rest.tilt_deg,
        "rotation_deg": rest.rotation_deg,
        "margin_deg": margins,
        "margin_mm": _millimetres(bodies, margins),
        "seconds": np.where(invalid, np.nan, rest.steps * protocol.timestep),
        "pose": np.where(invalid[:, None], np.nan, pose),
    }


def _millimetres(bodies: RigidBody, margins: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """From the centre of mass's foot to the nearest edge of the support polygon."""
    level = np.asarray(bodies.com, np.float64)[:, 2] - bodies.body_points()[..., 2].min(axis=1)
    return np.tan(np.radians(margins)) * level / bodies.size() * SIDE_MM
