"""One object replayed: how it starts and rests, and which choices would flip its label.

What it stands on at both ends, how far from tipping it starts, how often it survives a crooked
start, and what other choices would have made of it (`sim_mjx.variants`).
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from sim_mjx import engines, margin, meshes, perturb
from sim_mjx.bodies import RigidBody
from sim_mjx.engines import Engine
from sim_mjx.perturb import Perturbation
from sim_mjx.protocol import Protocol
from sim_mjx.readjudicate import readjudicate
from sim_mjx.rest import INVALID, Rest
from sim_mjx.variants import Variant, angle_of, label_of, variants

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
        return angle_of(self.rest, self.protocol)

    @property
    def stable(self) -> bool | None:
        """The label."""
        return label_of(self.rest, self.protocol)


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
        variants=list(variants(mesh, body, protocol, engine, first)),
    )


def _footing(points: np.ndarray, com: np.ndarray, depth: float) -> Footing:
    touching, corners = margin.footprint(points, depth)
    return Footing(touching, corners, np.asarray(com))
