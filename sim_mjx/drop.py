"""The drop: any number of different bodies through a fixed number of simulation slots.

One call of what `sim_mjx.stream` does without end.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim_mjx.bodies import RigidBody
from sim_mjx.pool import Device, Step
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest
from sim_mjx.stream import DropStream, Progress


def drop(
    bodies: RigidBody,
    protocol: Protocol,
    *,
    reasons: Sequence[str | None] | None = None,
    slots: int | None = None,
    progress: Progress | None = None,
    step: Step = "stock",
    devices: Sequence[Device] | None = None,
) -> Rest:
    """Drops every body and says how it ended.

    Args:
        bodies: one shape bucket, any number of objects.
        protocol: what is simulated.
        reasons: per object None, or why it is invalid already and must not be simulated.
        slots: objects simulated side by side on a device (or CPU core); a shape of the program.
        progress: called with the number of objects that have just finished.
        step: `stock` is `mjx.step` itself, `slim` its equations without what is zero here: equal
            but for rounding, and several times as fast.
        devices: that share the work, by default all local ones of the default backend.

    Returns:
        One entry an object, in order; the same call gives the same result. With the slim step the
        result of an object depends on nothing but the object; the stock step's last bits depend on
        the others of the batch.

    Raises:
        ValueError: if `reasons` is not one entry an object, or `step` is not a known one.
    """
    with DropStream(protocol, step=step, slots=slots, devices=devices, progress=progress) as stream:
        stream.put(bodies, reasons)
        stream.close()
        ((_, rest),) = stream.results()
    return rest
