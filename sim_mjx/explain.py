"""One object replayed: how it starts and rests, and which choices would flip its label.

A label is a decision under a protocol. Here the same object is dropped again with one choice
changed at a time: the engine, the contact rule, the inertia, the time step, the scale, and its own
vertices by a millionth of its size, which is the noise floor of any engine. What is not about the
engine is tried in C MuJoCo, where one object costs milliseconds and nothing is compiled.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import get_args

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from sim_mjx import engines, margin, meshes, perturb
from sim_mjx.bodies import BodyError, RigidBody
from sim_mjx.engines import Engine
from sim_mjx.perturb import Perturbation
from sim_mjx.protocol import InertiaMode, Protocol
from sim_mjx.readjudicate import readjudicate
from sim_mjx.rest import INVALID, Rest

TIMESTEPS = (5e-4, 1e-3, 2e-3, 5e-3)
JITTER = 1e-6  # of the object's size
JITTERED = 10  # times
THETAS = (0.01, 0.02, 0.04, 0.08)  # radians; those of the DSO paper
STARTS = 25


@dataclasses.dataclass(frozen=True)
class Footing:
    """What an object stands on.

    Attributes:
        points: support points within the contact skin of the lowest one, m.
        corners: corners of their hull on the ground, counter-clockwise; none if it has no area.
        com: centre of mass, m.
    """

    points: Float[np.ndarray, "n 3"]
    corners: Float[np.ndarray, "m 2"]
    com: Float[np.ndarray, " 3"]


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


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What one object does.

    Attributes:
        path: the file.
        protocol: what decides.
        body: upright.
        rest: how it ends, a batch of one.
        adjudicated: whether that is C MuJoCo's result.
        start: what it stands on at the start pose.
        end: and at the rest pose, in the world.
        margin_deg: static tipping margin at the start pose.
        margin_direction_deg: azimuth in which that margin is.
        survival: theta, radians, to the part of perturbed starts that it survives.
        variants: choices that were tried.
    """

    path: pathlib.Path
    protocol: Protocol
    body: RigidBody
    rest: Rest
    adjudicated: bool
    start: Footing
    end: Footing
    margin_deg: float
    margin_direction_deg: float
    survival: dict[float, float]
    variants: list[Variant]

    @property
    def angle_deg(self) -> float:
        """The angle that the label is made of."""
        return _angle(self.rest, self.protocol)

    @property
    def stable(self) -> bool | None:
        """The label."""
        return _stable(self.rest, self.protocol)


def explain(path: str | pathlib.Path, protocol: Protocol, engine: Engine) -> Explanation:
    """Replays one file.

    Raises:
        BodyError: it is not a usable mesh.
        OSError: it cannot be read.
    """
    path = pathlib.Path(path)
    mesh = meshes.load_mesh(path)
    body = meshes.body_from_triangles(mesh, protocol)
    first = engine.drop(body, protocol)
    rest, again = first, np.zeros(1, bool)
    if not engine.exact:
        rest, again = readjudicate(body, first, protocol)
    margins, azimuths = margin.static_margin(body)
    points, com = body.body_points()[0], body.com[0]
    depth = float(margin.TOUCH * body.size()[0])
    if rest.status[0] == INVALID:
        end = _footing(points, com, depth)
    else:
        turn = Rotation.from_quat(rest.quaternion[0], scalar_first=True)
        position = rest.position[0]
        end = _footing(turn.apply(points) + position, turn.apply(com) + position, depth)
    c = engines.resolve("mujoco")
    survival = {
        theta: float(
            perturb.survival(
                body, protocol, Perturbation(theta, STARTS), c.drop, keys=[mesh.sha256]
            ).rate[0]
        )
        for theta in THETAS
    }
    return Explanation(
        path=path,
        protocol=protocol,
        body=body,
        rest=rest,
        adjudicated=bool(again[0]),
        start=_footing(points, com, depth),
        end=end,
        margin_deg=float(margins[0]),
        margin_direction_deg=float(azimuths[0]),
        survival=survival,
        variants=list(_variants(mesh, body, protocol, engine, first)),
    )


def _variants(
    mesh: meshes.Mesh, body: RigidBody, protocol: Protocol, engine: Engine, first: Rest
) -> Iterator[Variant]:
    c = engines.resolve("mujoco")
    base = _stable(first, protocol)
    reference = first if engine.exact else c.drop(body, protocol)
    if not engine.exact:
        yield _variant("engine mujoco (C, float64)", reference, protocol, base)
        if protocol.contact == "c4":
            skin = dataclasses.replace(protocol, contact="skin")
            yield _variant(f"contact skin ({engine.name})", engine.drop(body, skin), skin, base)
    base = _stable(reference, protocol)
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
        labels.append(_stable(rest, protocol))
        angles.append(_angle(rest, protocol))
    other = sum(label != base for label in labels)
    choice, note = f"vertices jittered by {JITTER:g}", f"{other} of {JITTERED} differ"
    # Shown is the farthest from what decides: the run that is most different.
    return Variant(
        choice, float(np.nanmedian(angles)), base if not other else None, other > 0, note
    )


def _variant(
    choice: str, rest: Rest, protocol: Protocol, base: bool | None, note: str = ""
) -> Variant:
    stable = _stable(rest, protocol)
    if rest.status[0] != "rest":
        note = f"{rest.reason[0] or rest.status[0]} {note}".strip()
    return Variant(choice, _angle(rest, protocol), stable, stable != base, note)


def _stable(rest: Rest, protocol: Protocol) -> bool | None:
    return None if rest.status[0] == INVALID else bool(rest.stable(protocol)[0])


def _angle(rest: Rest, protocol: Protocol) -> float:
    return float((rest.tilt_deg if protocol.measure == "tilt" else rest.rotation_deg)[0])


def _footing(points: np.ndarray, com: np.ndarray, depth: float) -> Footing:
    touching, corners = margin.footprint(points, depth)
    return Footing(touching, corners, np.asarray(com))
