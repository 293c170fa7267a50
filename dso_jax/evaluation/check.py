"""One object: does it stand, by how much, which way would it go, and does that hang on its mass?

A mesh says where the surface is, not what is inside. So the object is dropped under each assumption
about its mass, in C MuJoCo, where one object costs milliseconds; what they agree on can be relied
on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from dso_jax.evaluation.baselines import RestPose, rest_poses, unit_upright
from dso_jax.evaluation.faults import Faults, faults
from sim_mjx import engines, margin, meshes, perturb
from sim_mjx.bodies import BodyError, RigidBody
from sim_mjx.explain import Footing
from sim_mjx.meshes import Mesh
from sim_mjx.protocol import InertiaMode, Protocol
from sim_mjx.rest import INVALID, Rest
from sim_mjx.variants import angle_of, label_of

# What the object may be inside; the first that can be had is shown. The solid as its triangles
# say, the same filled on a grid, the convex hull, the bare surface.
ASSUMPTIONS: tuple[InertiaMode, ...] = ("exact", "voxel", "convex", "shell")
_MANY = 4000  # hull points; each of twice as many faces costs half a millisecond
_EIGHTH = np.sin(np.pi / 8)  # eight headings: beyond this an axis is named
NOT_CLOSED = "not_closed"  # signed volumes of an open surface can add up to anything
Verdict = Literal["stands", "falls", "depends"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the object does under one protocol.

    Attributes:
        protocol: the inertia mode and all else.
        body: as it is put down.
        rest: how it ends, a batch of one.
        doubt: why this mass cannot be had of this mesh, empty if it can.
    """

    protocol: Protocol
    body: RigidBody
    rest: Rest
    doubt: str

    @property
    def stable(self) -> bool | None:
        """Whether it stands; None if it could not be simulated."""
        return label_of(self.rest, self.protocol)

    @property
    def angle_deg(self) -> float:
        """The angle that this is decided by."""
        return angle_of(self.rest, self.protocol)

    @property
    def margin_deg(self) -> float:
        """Smallest tipping angle at the start."""
        return float(margin.static_margin(self.body)[0][0])

    @property
    def settled_deg(self) -> float:
        """The same once it has come to rest: an object may rock a little to find its feet."""
        if self.rest.status[0] == INVALID:
            return np.nan
        margins = margin.static_margin_deg(perturb.turned(self.body, self.rest.quaternion))
        return float(margins[0])

    @property
    def distance(self) -> float:
        """From below the centre of mass to the nearest edge of what it rests on, m; < 0 outside."""
        return margin.distance_inside(self.end.points[:, :2], self.end.com[:2])

    @property
    def azimuth_deg(self) -> float:
        """Where it falls or, if it stands, would most easily: degrees from x towards y."""
        if self.stable is False:
            lean = self._turn().apply([0.0, 0.0, 1.0])[:2]
            if np.hypot(*lean) > 1e-6:  # not on its head
                return float(np.degrees(np.arctan2(lean[1], lean[0])))
        return float(margin.static_margin(self.body)[1][0])

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.body.provenance[0].source)

    @property
    def start(self) -> Footing:
        """What it is put down on."""
        return self._footing(self.body.body_points()[0], np.asarray(self.body.com[0]))

    @property
    def end(self) -> Footing:
        """What it comes to rest on."""
        if self.rest.status[0] == INVALID:
            return self.start
        turn, place = self._turn(), self.rest.position[0]
        points, com = self.body.body_points()[0], np.asarray(self.body.com[0])
        return self._footing(turn.apply(points) + place, turn.apply(com) + place)

    def _footing(self, points: np.ndarray, com: np.ndarray) -> Footing:
        touching, corners = margin.footprint(points, margin.TOUCH * float(self.body.size()[0]))
        return Footing(touching, corners, com)

    def _turn(self) -> Rotation:
        return Rotation.from_quat(self.rest.quaternion[0], scalar_first=True)


@dataclasses.dataclass(frozen=True)
class Check:
    """One object.

    Attributes:
        mesh: the file's.
        axes: where the file's x, y and z point in the frame of the drop; rows.
        faults: of the mesh.
        vertices: as they are put down, m.
        outcomes: under each of `ASSUMPTIONS`; it stands if it tilts less than the threshold.
        label: as `dso label` has it, with the protocol's own inertia and measure.
        pose: in which it would be hardest to tip, if it falls and there is a stable one.
    """

    mesh: Mesh
    axes: Float[np.ndarray, "3 3"]
    faults: Faults
    vertices: Float[np.ndarray, "N 3"]
    outcomes: Mapping[str, Outcome]
    label: Outcome
    pose: RestPose | None

    @property
    def shown(self) -> Outcome:
        """Under the first assumption that can be made of this mesh."""
        return next(one for one in self.outcomes.values() if not one.doubt)

    @property
    def verdict(self) -> Verdict:
        """What the assumptions that can be made of this mesh agree on."""
        found = {one.stable for one in self.outcomes.values() if not one.doubt}
        return "depends" if len(found) > 1 else "stands" if found == {True} else "falls"

    @property
    def extents(self) -> Float[np.ndarray, " 3"]:
        """Sides of the box around it as it is put down, in the file's units."""
        return np.ptp(self.mesh.vertices @ self.axes, axis=0)

    @property
    def up(self) -> str:
        """The file's axis that points up."""
        return "xyz"[int(self.axes[:, 2].argmax())]

    @property
    def unit(self) -> float:
        """The file's units in a metre of the drop."""
        return float(self.extents.max() / np.ptp(self.vertices, axis=0).max())

    def heading(self, azimuth_deg: float) -> str:
        """An azimuth of the drop along the file's axes, such as `+x` or `-x +z`; empty for NaN."""
        if np.isnan(azimuth_deg):
            return ""
        angle = np.radians(azimuth_deg)
        along = self.axes @ [np.cos(angle), np.sin(angle), 0.0]
        named = zip("xyz", along, strict=True)
        return " ".join(f"{'-' if a < 0 else '+'}{name}" for name, a in named if abs(a) > _EIGHTH)


def check(path: Path, protocol: Protocol) -> Check:
    """Reads a file and drops what is in it.

    Raises:
        BodyError: it is not a usable mesh, or cannot be simulated.
        OSError: it cannot be read.
    """
    mesh = meshes.load_mesh(path)
    found = faults(mesh)
    outcomes = {}
    for mode in ASSUMPTIONS:
        one = _outcome(mesh, dataclasses.replace(protocol, inertia=mode, measure="tilt"))
        if mode == "exact" and not found.watertight:
            one = dataclasses.replace(one, doubt=one.doubt or NOT_CLOSED)
        outcomes[mode] = one
    shown = next((one for one in outcomes.values() if not one.doubt), None)
    if shown is None:
        raise BodyError(outcomes["convex"].doubt, f"{path}: the drop has no end")
    up = mesh.up if protocol.up == "auto" else protocol.up
    return Check(
        mesh=mesh,
        axes=meshes.upright(np.eye(3), up, protocol),
        faults=found,
        vertices=meshes.start_vertices(mesh, protocol),
        outcomes=outcomes,
        label=_outcome(mesh, protocol),
        pose=None if shown.stable else _best_pose(mesh, shown),
    )


def _best_pose(mesh: Mesh, shown: Outcome) -> RestPose | None:
    """The first of `rest_poses`; of a hull with too many faces to try them all, none."""
    if shown.body.provenance[0].hull_points > _MANY:
        return None
    poses = rest_poses(unit_upright(mesh, shown.protocol.up), shown.protocol.inertia)
    return poses[0] if poses else None


def _outcome(mesh: Mesh, protocol: Protocol) -> Outcome:
    body = meshes.body_from_triangles(mesh, protocol)
    rest = engines.resolve("mujoco").drop(body, protocol)
    return Outcome(protocol, body, rest, body.provenance[0].fallback or rest.reason[0] or "")
