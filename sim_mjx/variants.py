"""Which choices would flip a label.

A label is a decision under a protocol. Here one object is dropped again with one choice changed at
a time: the engine, the contact rule, the inertia, the time step, the scale, and its own vertices by
a millionth of its size, which is the noise floor of any engine. What is not about the engine is
tried in C MuJoCo, where one object costs milliseconds and nothing is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import get_args

import numpy as np

from sim_mjx import engines, meshes
from sim_mjx.bodies import BodyError, RigidBody
from sim_mjx.engines import Engine
from sim_mjx.protocol import InertiaMode, Protocol
from sim_mjx.rest import INVALID, Rest

TIMESTEPS = (5e-4, 1e-3, 2e-3, 5e-3)
JITTER = 1e-6  # of the object's size
JITTERED = 10  # times


@dataclasses.dataclass(frozen=True)
class Variant:
    """One choice changed.

    Attributes:
        choice: what is changed.
        angle_deg: by the protocol's measure; NaN where it has no label.
        stable: the label, or None.
        flips: whether it differs from the label of the same engine without the change.
        note: anything else, for people.
    """

    choice: str
    angle_deg: float
    stable: bool | None
    flips: bool
    note: str = ""


def variants(
    mesh: meshes.Mesh, body: RigidBody, protocol: Protocol, engine: Engine, first: Rest
) -> Iterator[Variant]:
    """The labels that other choices give.

    Args:
        mesh: as it was read.
        body: as the protocol makes it.
        protocol: the choices that are changed, one at a time.
        engine: whose label is asked about.
        first: how the body ended in it.
    """
    c = engines.resolve("mujoco")
    base = label_of(first, protocol)
    reference = first if engine.exact else c.drop(body, protocol)
    if not engine.exact:
        yield _variant("engine mujoco (C, float64)", reference, protocol, base)
        if protocol.contact == "c4":
            skin = dataclasses.replace(protocol, contact="skin")
            yield _variant(f"contact skin ({engine.name})", engine.drop(body, skin), skin, base)
    base = label_of(reference, protocol)
    for choice, changed in _changed(protocol, mesh):
        try:
            other = meshes.body_from_triangles(mesh, changed)
        except BodyError as error:
            yield Variant(choice, np.nan, None, base is not None, error.reason)
            continue
        note = other.provenance[0].fallback or "" if choice.startswith("inertia") else ""
        yield _variant(choice, c.drop(other, changed), changed, base, note)
    yield _jittered(mesh, protocol, c, base)


def _changed(protocol: Protocol, mesh: meshes.Mesh) -> Iterator[tuple[str, Protocol]]:
    def replace(**field) -> Protocol:
        return dataclasses.replace(protocol, **field)

    for mode in get_args(InertiaMode):
        if mode != protocol.inertia:
            yield f"inertia {mode}", replace(inertia=mode)
    for timestep in TIMESTEPS:
        if timestep != protocol.timestep:
            yield f"time step {1e3 * timestep:g} ms", replace(timestep=timestep)
    scaling = "none" if protocol.scaling == "unit" else "unit"
    yield f"scaling {scaling}", replace(scaling=scaling)
    if (mesh.up if protocol.up == "auto" else protocol.up) == "y":
        turn = "swap" if protocol.up_turn == "rotation" else "rotation"
        yield f"y-up turned by {turn}", replace(up_turn=turn)
        yield "up axis z", replace(up="z")
    else:
        yield "up axis y", replace(up="y")
    stop = not protocol.early_stop
    yield ("early stop" if stop else f"all {protocol.duration:g} s"), replace(early_stop=stop)
    measure = "tilt" if protocol.measure == "rotation" else "rotation"
    yield f"measured by {measure}", replace(measure=measure)
    for friction in (0.5 * protocol.friction, 2.0 * protocol.friction):
        yield f"friction {friction:g}", replace(friction=friction)


def _jittered(mesh: meshes.Mesh, protocol: Protocol, c: Engine, base: bool | None) -> Variant:
    random = np.random.default_rng(0)
    size = np.ptp(mesh.vertices, axis=0).max()
    labels, angles = [], []
    for _ in range(JITTERED):
        noise = JITTER * size * random.uniform(-1, 1, mesh.vertices.shape)
        moved = dataclasses.replace(mesh, vertices=mesh.vertices + noise)
        rest = c.drop(meshes.body_from_triangles(moved, protocol), protocol)
        labels.append(label_of(rest, protocol))
        angles.append(angle_of(rest, protocol))
    other = sum(label != base for label in labels)
    choice, note = f"vertices jittered by {JITTER:g}", f"{other} of {JITTERED} differ"
    # Shown is the farthest from what decides: the run that is most different.
    return Variant(
        choice, float(np.nanmedian(angles)), base if not other else None, other > 0, note
    )


def _variant(
    choice: str, rest: Rest, protocol: Protocol, base: bool | None, note: str = ""
) -> Variant:
    stable = label_of(rest, protocol)
    if rest.status[0] != "rest":
        note = f"{rest.reason[0] or rest.status[0]} {note}".strip()
    return Variant(choice, angle_of(rest, protocol), stable, stable != base, note)


def label_of(rest: Rest, protocol: Protocol) -> bool | None:
    """Whether a single object is stable, or None where it has no label."""
    return None if rest.status[0] == INVALID else bool(rest.stable(protocol)[0])


def angle_of(rest: Rest, protocol: Protocol) -> float:
    """The angle of a single object that its label is made of, degrees."""
    return float((rest.tilt_deg if protocol.measure == "tilt" else rest.rotation_deg)[0])
