"""What one can do to an object without training: lay it down, cut it flat, or pick the best of N.

All three make more objects stand. The first pays with which way is up, the second
(`dso_jax.evaluation.cut`) with shape, the third with N times the sampling.

Legend: N vertices, H hull vertices, P poses.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from dso_jax.evaluation.geometry import UpAxis, unit_vertices
from sim_mjx.bodies import BodyError
from sim_mjx.hull import convex_hull
from sim_mjx.margin import TOUCH, distance_inside, footprint
from sim_mjx.mass_properties import mass_properties
from sim_mjx.meshes import Mesh, upright
from sim_mjx.protocol import InertiaMode, Protocol

# Margins this close are equal, degrees: the upper of two such poses is taken.
_SAME_MARGIN = 1e-3


def unit_upright(mesh: Mesh, up: UpAxis = "auto") -> Mesh:
    """The mesh with z up, centred on its bounding box, of longest side 1.

    Raises:
        BodyError: `flat` if all vertices coincide.
    """
    turned = upright(mesh.vertices, mesh.up if up == "auto" else up, Protocol())
    return Mesh(unit_vertices(turned), mesh.triangles, "z", mesh.source, mesh.sha256)


@dataclasses.dataclass(frozen=True)
class RestPose:
    """One way to stand on a face of the convex hull.

    Attributes:
        rotation: takes the upright object to the pose; the smallest turn that does.
        turn_deg: its angle, 0..180.
        margin_deg: smallest tipping angle in the pose, see `sim_mjx.margin`.
    """

    rotation: Float[np.ndarray, "3 3"]
    turn_deg: float
    margin_deg: float


def rest_poses(mesh: Mesh, inertia: InertiaMode = "legacy") -> list[RestPose]:
    """All poses on a face of the hull with the centre of mass above it, largest margin first.

    Of equal margins the smaller turn comes first. A cube has six.

    Args:
        mesh: upright, in its own z axis.
        inertia: where the centre of mass comes from, see `sim_mjx.mass_properties`.

    Raises:
        BodyError: `flat` if the vertices span no volume.
    """
    hull = convex_hull(mesh.vertices)
    com = mass_properties(mesh.vertices, mesh.triangles, hull, inertia).com
    points = hull.vertices - com
    depth = TOUCH * float(np.ptp(mesh.vertices, axis=0).max())
    poses = []
    for normal in hull.normals:
        rotation = _turn_down(normal)
        turned = points @ rotation.T
        feet, _ = footprint(turned, depth)
        inside = distance_inside(feet[:, :2], np.zeros(2))
        if inside > 0:
            margin = np.degrees(np.arctan2(inside, -turned[:, 2].min()))
            turn = np.degrees(np.arccos(np.clip(-normal[2], -1.0, 1.0)))
            poses.append(RestPose(rotation, float(turn), float(margin)))
    return sorted(poses, key=lambda p: (-round(p.margin_deg / _SAME_MARGIN), p.turn_deg))


def best_pose(
    mesh: Mesh,
    prefer: Literal["margin", "nearest"] = "margin",
    *,
    least_deg: float = 0.0,
    inertia: InertiaMode = "legacy",
    up: UpAxis = "auto",
) -> tuple[Mesh, RestPose]:
    """Turns the object into a pose in which it stands.

    Args:
        mesh: any mesh.
        prefer: `margin` takes the pose that is hardest to tip, `nearest` the smallest turn.
        least_deg: with `nearest`, margins below this do not count as standing.
        inertia: see `rest_poses`.
        up: the axis that points up; `auto` takes the mesh's own.

    Returns:
        The turned mesh, longest side 1, and the pose.

    Raises:
        BodyError: `flat`; `no_pose` if nothing reaches `least_deg`.
    """
    unit = unit_upright(mesh, up)
    poses = rest_poses(unit, inertia)
    if prefer == "nearest":
        standing = (pose for pose in poses if pose.margin_deg >= least_deg)
        poses = sorted(standing, key=lambda pose: pose.turn_deg)
    if not poses:
        raise BodyError("no_pose", f"no pose has a margin of {least_deg} degrees")
    turned = dataclasses.replace(unit, vertices=unit.vertices @ poses[0].rotation.T)
    return unit_upright(turned), poses[0]


def best_of(
    scores: Shaped[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"], count: int | None = None
) -> Int[np.ndarray, " g"]:
    """For each group, the row with the highest score among its first `count`.

    Args:
        scores: one a sample, higher is better (truth values serve); NaN loses to every number.
        groups: the object or prompt that each sample is of.
        count: samples that count; None takes all.

    Returns:
        Rows, one a group, groups in order of first appearance; of equals the first row.

    Raises:
        ValueError: lists of different lengths, or `count` below 1.
    """
    scores, groups = np.asarray(scores, np.float64), np.asarray(groups)
    if scores.shape != groups.shape or scores.ndim != 1:
        raise ValueError(f"expected lists of one length, got {scores.shape} and {groups.shape}")
    if count is not None and count < 1:
        raise ValueError(f"best of {count}: expected at least 1")
    scores = np.where(np.isnan(scores), -np.inf, scores)
    _, first, label = np.unique(groups, return_index=True, return_inverse=True)
    chosen = [_argmax(scores, np.flatnonzero(label == g)[:count]) for g in np.argsort(first)]
    return np.array(chosen, np.int64)


def _argmax(scores: Float[np.ndarray, " n"], rows: Int[np.ndarray, " m"]) -> int:
    return int(rows[scores[rows].argmax()])


def _turn_down(normal: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation that takes a unit vector to -z."""
    x, y, z = normal
    if z > 1.0 - 1e-12:  # half a turn, about any horizontal axis
        return np.diag([1.0, -1.0, -1.0])
    axis = np.array([-y, x, 0.0])  # normal x (0, 0, -1), of the length of the sine
    cross = np.array([[0, 0, axis[1]], [0, 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1.0 - z)
