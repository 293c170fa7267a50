"""Close calls go to the referee: C MuJoCo in float64 decides where MJX in float32 hardly can.

A tilt within a few degrees of the threshold can end on either side by rounding alone, and an object
that still moves has no angle of its own yet. Such rows are few on real meshes (about one in a
hundred), so they are dropped again in C, and the table says so.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool

from sim_mjx import referee
from sim_mjx.bodies import RigidBody
from sim_mjx.protocol import Protocol
from sim_mjx.rest import INVALID, MOVING, NOT_FINITE, Rest

# Half the width of the band around the threshold: 15 to 25 degrees for a threshold of 20.
BAND_DEG = 5.0


def close_calls(rest: Rest, protocol: Protocol) -> Bool[np.ndarray, " B"]:
    """Which results another engine might well see differently.

    Those near the threshold by either measure, those that still move, and those that overflowed in
    single precision.
    """
    near = np.abs(rest.tilt_deg - protocol.threshold_deg) <= BAND_DEG
    near |= np.abs(rest.rotation_deg - protocol.threshold_deg) <= BAND_DEG
    return near | (rest.status == MOVING) | (rest.reason == NOT_FINITE)


def readjudicate(
    bodies: RigidBody, rest: Rest, protocol: Protocol
) -> tuple[Rest, Bool[np.ndarray, " B"]]:
    """Drops close calls again in C MuJoCo.

    Args:
        bodies: what was dropped.
        rest: how it ended in the first engine.
        protocol: the same protocol, except that C keeps its own contact rule and iterations.

    Returns:
        The result with the referee's entries in place of the close calls, and which they are. What
        the referee refuses keeps its first result.
    """
    again = close_calls(rest, protocol)
    if not again.any():
        return rest, again
    second = referee.drop(bodies[again], protocol)
    accepted = second.status != INVALID
    again[again] = accepted
    decided = {}
    for field in dataclasses.fields(Rest):
        values = getattr(rest, field.name).copy()
        values[again] = getattr(second, field.name)[accepted]
        decided[field.name] = values
    return Rest(**decided), again
