"""When an engine may call an object at rest: quiet for some checks in a row, and not falling yet.

What tips over from near balance is slow for seconds, but its speed grows by the same factor from
check to check, as an inverted pendulum's does; what comes to rest slows down or wavers. Of 597 real
meshes one is quiet for a second and lies on its side two seconds later.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from sim_mjx.protocol import Protocol


class Settling(NamedTuple):
    """What is remembered from check to check; numbers, or arrays with one entry an object."""

    speed: Any  # at the last check, m/s and rad/s
    quiet: Any  # quiet checks in a row
    growing: Any  # checks in a row at which the speed had grown


def begin(shape: tuple[int, ...], xp: ModuleType) -> Settling:
    """Before the first check, which cannot be one of growth."""
    none = xp.zeros(shape, xp.int32)
    return Settling(xp.full(shape, xp.inf, xp.float32), none, none)


def check(before: Settling, speed, footing, protocol: Protocol, xp: ModuleType) -> Settling:
    """One check.

    Args:
        before: the checks so far.
        speed: max |qvel| now.
        footing: whether what touches the ground spans an area: balanced on an edge is not at rest.
        protocol: says what is quiet and what has grown.
        xp: numpy or jax.numpy.
    """
    quiet = (speed < protocol.quiet_speed) & footing
    growing = speed > protocol.growth * before.speed
    return Settling(
        speed,
        xp.where(quiet, before.quiet + 1, 0),
        xp.where(growing, before.growing + 1, 0),
    )


def at_rest(now: Settling, protocol: Protocol):
    """Whether the object may be let go."""
    return (now.quiet >= protocol.quiet_checks) & (now.growing < protocol.growing_checks)


def spans_area(points, depth, xp: ModuleType):
    """Whether the points that press into the ground span more than a line.

    What stands on a point or an edge is balanced, not at rest, however slowly it moves.

    Args:
        points: support points in the world, (K, 3).
        depth: the contact skin, m; a tenth of it is the least width of a footprint.
        xp: numpy or jax.numpy.
    """
    below = points[:, 2] < 0
    flat = points[:, :2]
    first = flat[xp.argmin(points[:, 2])]
    reach = xp.where(below, ((flat - first) ** 2).sum(axis=1), -1.0)
    along = flat[xp.argmax(reach)] - first
    length = xp.sqrt((along**2).sum())
    across = xp.abs((flat[:, 0] - first[0]) * along[1] - (flat[:, 1] - first[1]) * along[0])
    return xp.where(below, across, 0.0).max() > 0.1 * depth * xp.maximum(length, 0.1 * depth)


def follow(
    advance: Callable[[], float], footing: Callable[[], bool], protocol: Protocol
) -> tuple[int, bool]:
    """One object from check to check, to its rest or the protocol's end.

    Args:
        advance: simulates `protocol.check_steps` steps; gives max |velocity|, m/s and rad/s.
        footing: whether what touches the ground spans an area; asked for what is quiet.
        protocol: says how long, and what is rest.

    Returns:
        The steps, and whether it came to rest.
    """
    minimum = round(protocol.minimum_time / protocol.timestep)
    steps, checked = 0, begin((), np)
    while steps < protocol.steps:
        speed = advance()
        steps += protocol.check_steps
        stands = speed < protocol.quiet_speed and footing()
        checked = check(checked, speed, stands, protocol, np)
        if protocol.early_stop and at_rest(checked, protocol) and steps >= minimum:
            break
        if not np.isfinite(speed):
            break
    return steps, bool(at_rest(checked, protocol))
