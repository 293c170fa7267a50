"""Perturbed starts: does an object still stand after it was set down a little crooked?

Each start turns the upright object by a uniform angle in +-theta about a uniform horizontal axis
and puts its lowest point back on the ground. A turned body is a body like any other (support
points and polygons live in the inertial frame and stay as they are), so nothing is prepared again.

An object survives a start if its up axis ends within the threshold of *upright*, not of how it was
set down. Yaw does not count: an object that stands has survived, whichever way it faces.

Legend: B objects, R starts of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from sim_mjx.bodies import RigidBody
from sim_mjx.protocol import Protocol
from sim_mjx.rest import INVALID, Rest, tilt_deg

# Bytes of turned bodies that are dropped in one call; the starts of an object repeat its points.
CALL_BYTES = 2**30

Drop = Callable[..., Rest]


class PerturbError(ValueError):
    """Settings of perturbed starts that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """How objects are set down.

    Attributes:
        theta: largest angle of a start, radians.
        starts: starts of each object.
        seed: changes all starts; start r of an object depends on the object and this alone.
    """

    theta: float
    starts: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.theta <= np.pi:
            raise PerturbError(f"perturb.theta: expected radians in (0, pi], got {self.theta}")
        if self.starts < 1:
            raise PerturbError(f"perturb.starts: expected at least 1, got {self.starts}")
        if self.seed < 0:
            raise PerturbError(f"perturb.seed: expected zero or more, got {self.seed}")

    def quaternions(self, key: str) -> Float[np.ndarray, "R 4"]:
        """The starts of one object, wxyz; the first ones stay when more are asked for.

        Args:
            key: hexadecimal name of the object, such as the digest of its file.
        """
        words = [int(key[i : i + 8], 16) for i in range(0, len(key), 8)]
        random = np.random.default_rng([self.seed, *words])
        angle, azimuth = random.uniform(
            [-self.theta, 0.0], [self.theta, 2 * np.pi], (self.starts, 2)
        ).T
        sine = np.sin(angle / 2)
        return np.stack(
            [np.cos(angle / 2), sine * np.cos(azimuth), sine * np.sin(azimuth), 0 * angle], axis=1
        )


@dataclasses.dataclass(frozen=True)
class Survival:
    """How often objects stood at the end, and where they went if not.

    Attributes:
        rate: part of the valid starts that ended upright; NaN where none is valid.
        starts: valid starts.
        direction_deg: mean azimuth, from the body's x axis towards y, in which the up axis leans
            after the starts that fell; NaN where none fell.
        agreement: length of the mean direction vector, 1 where all falls go the same way.
    """

    rate: Float[np.ndarray, " B"]
    starts: Int[np.ndarray, " B"]
    direction_deg: Float[np.ndarray, " B"]
    agreement: Float[np.ndarray, " B"]


def turned(bodies: RigidBody, quaternions: Float[np.ndarray, "B 4"]) -> RigidBody:
    """The bodies as they stand after a turn about their origin; no pose but numbers change."""
    turn = _rotation(quaternions)
    inertial = turn * _rotation(bodies.inertia_quat)
    # The margin that was told is that of the pose before; many bodies share an origin.
    origins = {id(origin): origin for origin in bodies.provenance}
    origins = {key: dataclasses.replace(one, margin_deg=None) for key, one in origins.items()}
    return dataclasses.replace(
        bodies,
        provenance=tuple(origins[id(origin)] for origin in bodies.provenance),
        com=turn.apply(np.asarray(bodies.com, np.float64)),
        inertia_quat=inertial.as_quat(canonical=True, scalar_first=True),
    )


def survival(
    bodies: RigidBody,
    protocol: Protocol,
    perturbation: Perturbation,
    drop: Drop,
    *,
    keys: Sequence[str],
) -> Survival:
    """Drops every object from all of its starts; see `survivals`."""
    return survivals(bodies, protocol, [perturbation], drop, keys=keys)[0]


def survivals(
    bodies: RigidBody,
    protocol: Protocol,
    perturbations: Sequence[Perturbation],
    drop: Drop,
    *,
    keys: Sequence[str],
) -> list[Survival]:
    """Drops every object from the starts of several perturbations, all in one batch.

    Args:
        bodies: one shape bucket.
        protocol: what is simulated; its threshold decides survival, as a tilt from upright.
        perturbations: each gives starts of its own.
        drop: an engine's `drop(bodies, protocol)`.
        keys: hexadecimal name of each object; see `Perturbation.quaternions`.

    Returns:
        One entry a perturbation.
    """
    starts = Starts(bodies, perturbations, keys)
    for chosen, batch in starts.batches():
        starts.note(chosen, drop(batch, protocol))
    return starts.survivals(protocol)


class Starts:
    """All starts of some objects, and how each ended.

    Args:
        bodies: one shape bucket.
        perturbations: each gives starts of its own.
        keys: hexadecimal name of each object; see `Perturbation.quaternions`.

    Attributes:
        calls: batches to be dropped.
    """

    def __init__(
        self, bodies: RigidBody, perturbations: Sequence[Perturbation], keys: Sequence[str]
    ):
        starts = [[p.quaternions(key) for key in keys] for p in perturbations]
        start = np.concatenate(starts, axis=1)
        self._bodies, self._perturbations = bodies, perturbations
        self._each, self._start = start.shape[1], start.reshape(-1, 4)
        self._end, self._valid = np.zeros_like(self._start), np.zeros(len(self._start), bool)
        self._size = max(1, CALL_BYTES // body_bytes(bodies))
        self.calls = -(-len(self._start) // self._size)

    def batches(self) -> Iterator[tuple[Int[np.ndarray, " n"], RigidBody]]:
        """Which starts, and the bodies as they are set down."""
        for first in range(0, len(self._start), self._size):
            chosen = np.arange(first, min(first + self._size, len(self._start)))
            yield chosen, turned(self._bodies[chosen // self._each], self._start[chosen])

    def note(self, chosen: Int[np.ndarray, " n"], rest: Rest) -> None:
        """How these starts ended."""
        self._end[chosen], self._valid[chosen] = rest.quaternion, rest.status != INVALID

    def survivals(self, protocol: Protocol) -> list[Survival]:
        """What came of each perturbation, once every start has ended."""
        count = len(self._bodies)
        end = np.where(self._valid[:, None], self._end, [1.0, 0.0, 0.0, 0.0])
        # The end is relative to how the object was set down; before that comes the start's turn.
        upright = (_rotation(end) * _rotation(self._start)).as_quat(scalar_first=True)
        stands = (tilt_deg(upright) < protocol.threshold_deg).reshape(count, -1)
        upright, valid = upright.reshape(count, -1, 4), self._valid.reshape(count, -1)
        results, first = [], 0
        for perturbation in self._perturbations:
            part = slice(first, first := first + perturbation.starts)
            flat = _rotation(upright[:, part].reshape(-1, 4))
            shape = (count, perturbation.starts)
            results.append(_summary(flat, stands[:, part].ravel(), valid[:, part].ravel(), shape))
        return results


def _summary(upright: Rotation, stands, valid, shape: tuple[int, int]) -> Survival:
    up = upright.apply([0.0, 0.0, 1.0])[:, :2]
    # An object that ends on its head leans in no direction.
    length = np.linalg.norm(up, axis=1)
    fell = (valid & ~stands & (length > 1e-9)).reshape(shape)
    unit = (up / np.maximum(length, 1e-9)[:, None]).reshape(*shape, 2)
    falls, total = fell.sum(axis=1), np.where(fell[..., None], unit, 0.0).sum(axis=1)
    starts = valid.reshape(shape).sum(axis=1)
    stood = (valid & stands).reshape(shape).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate, agreement = stood / starts, np.linalg.norm(total, axis=1) / falls
    azimuth = np.degrees(np.arctan2(total[:, 1], total[:, 0]))
    return Survival(rate, starts, np.where(falls > 0, azimuth, np.nan), agreement)


def _rotation(quaternions: Float[np.ndarray, "n 4"]) -> Rotation:
    return Rotation.from_quat(np.asarray(quaternions, np.float64), scalar_first=True)


def body_bytes(bodies: RigidBody) -> int:
    """Memory that one body of a batch takes."""
    arrays = [bodies.points]
    if bodies.polygons is not None:
        table = bodies.polygons
        arrays += [table.start, table.count, table.normals, table.contacts]
    return sum(array[:1].nbytes for array in arrays)
