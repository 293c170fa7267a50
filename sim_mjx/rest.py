"""Rest: how objects ended, as a struct of arrays, and the angles a label is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from sim_mjx.bodies import RigidBody
from sim_mjx.protocol import Protocol

REST, MOVING, INVALID = "rest", "moving", "invalid"
NOT_FINITE = "not_finite"  # the state overflowed or became NaN


@dataclasses.dataclass(frozen=True)
class Rest:
    """End state of B objects.

    Attributes:
        tilt_deg: angle between the object's up axis and world up; NaN where invalid.
        rotation_deg: DSO's total rotation 2 acos(w), 0..360, yaw included; NaN where invalid.
        status: `rest` (came to rest), `moving` (still moving at the end) or `invalid`.
        reason: why an object is invalid, else None.
        steps: steps simulated.
        position: final position of the body frame's origin, m.
        quaternion: final orientation wxyz; the start is the identity.
    """

    tilt_deg: Float[np.ndarray, " B"]
    rotation_deg: Float[np.ndarray, " B"]
    status: np.ndarray
    reason: np.ndarray
    steps: Int[np.ndarray, " B"]
    position: Float[np.ndarray, "B 3"]
    quaternion: Float[np.ndarray, "B 4"]

    def __len__(self) -> int:
        return len(self.steps)

    def stable(self, protocol: Protocol) -> Bool[np.ndarray, " B"]:
        """Valid and below the protocol's threshold; `invalid` objects are never stable."""
        angle = self.tilt_deg if protocol.measure == "tilt" else self.rotation_deg
        return (self.status != INVALID) & (angle < protocol.threshold_deg)

    @classmethod
    def from_states(
        cls,
        position: Float[np.ndarray, "B 3"],
        quaternion: Float[np.ndarray, "B 4"],
        steps: Int[np.ndarray, " B"],
        quiet: Bool[np.ndarray, " B"],
        reasons: list[str | None],
    ) -> Rest:
        """Builds the struct; a given reason or a state that is not finite makes `invalid`."""
        position = np.array(position, np.float64)
        quaternion = np.array(quaternion, np.float64)
        finite = np.isfinite(position).all(axis=1) & np.isfinite(quaternion).all(axis=1)
        reason = np.array(reasons, dtype=object)
        reason[~finite & (reason == None)] = NOT_FINITE  # noqa: E711, elementwise
        invalid = np.array([r is not None for r in reason], dtype=bool)
        position[invalid], quaternion[invalid] = np.nan, np.nan
        return cls(
            tilt_deg=tilt_deg(quaternion),
            rotation_deg=rotation_deg(quaternion),
            status=np.where(invalid, INVALID, np.where(quiet, REST, MOVING)).astype(object),
            reason=reason,
            steps=np.asarray(steps, np.int64),
            position=position,
            quaternion=quaternion,
        )


def known_reasons(bodies: RigidBody, reasons: Sequence[str | None] | None) -> list[str | None]:
    """One entry a body: None, or why it is invalid before anything is simulated.

    Raises:
        ValueError: if `reasons` is given and not one entry a body.
    """
    if reasons is None:
        return [None] * len(bodies)
    if len(reasons) != len(bodies):
        raise ValueError(f"drop: {len(reasons)} reasons for {len(bodies)} bodies")
    return list(reasons)


def tilt_deg(quaternion: Float[np.ndarray, "B 4"]) -> Float[np.ndarray, " B"]:
    """Angle between the body's up axis and world up, degrees in [0, 180]; yaw does not count."""
    w, x, y, z = _unit(quaternion).T
    horizontal = np.hypot(2 * (x * z + w * y), 2 * (y * z - w * x))
    return np.degrees(np.arctan2(horizontal, 1 - 2 * (x * x + y * y)))


def rotation_deg(quaternion: Float[np.ndarray, "B 4"]) -> Float[np.ndarray, " B"]:
    """DSO's total rotation 2 acos(w), degrees in [0, 360].

    Written with the vector part, since acos has no resolution near w = 1 in float32.
    """
    q = _unit(quaternion)
    return np.degrees(2 * np.arctan2(np.linalg.norm(q[:, 1:], axis=1), q[:, 0]))


def _unit(quaternion: Float[np.ndarray, "B 4"]) -> Float[np.ndarray, "B 4"]:
    q = np.asarray(quaternion, np.float64)
    return q / np.linalg.norm(q, axis=1, keepdims=True)
