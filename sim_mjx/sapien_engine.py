"""The same drop in PhysX, through SAPIEN: an engine that shares no code with MuJoCo.

Optional (`pip install sapien`), on the processor. It is a witness, not a referee: hard contacts
instead of MuJoCo's soft ones, hulls of at most 255 corners, single precision. Bodies, mass, start,
friction, time step and the rule of the early stop are the same. PhysX would put slow bodies to
sleep, which stops slow falls; here they stay awake.
"""

# The bindings of PhysX are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sim_mjx import settling, world
from sim_mjx.bodies import RigidBody
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest, known_reasons
from sim_mjx.rotations import to_matrix

REJECTED = "physx_rejects"


def drop(
    bodies: RigidBody,
    protocol: Protocol,
    *,
    reasons: Sequence[str | None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rest:
    """Drops every body in PhysX; see `sim_mjx.drop` for arguments and result."""
    count, why = len(bodies), known_reasons(bodies, reasons)
    pose = np.tile(np.array([0.0, 0, 0, 1, 0, 0, 0]), (count, 1))
    steps, at_rest = np.zeros(count, np.int64), np.zeros(count, bool)
    points, start = bodies.body_points(), world.start_position(bodies)
    depth = protocol.skin * bodies.size()
    physx = _physx()
    for i in range(count):
        if why[i] is not None:
            continue
        try:
            scene, body = _scene(physx, bodies, i, points[i], start[i], depth[i], protocol)
        except RuntimeError:  # what cooking a hull raises
            why[i] = REJECTED
            continue
        pose[i], steps[i], at_rest[i] = _simulate(scene, body, points[i], depth[i], protocol)
        if progress is not None:
            progress(1)
    return Rest.from_states(pose[:, :3], pose[:, 3:], steps, at_rest, why)


def _physx() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses a renderer, which nothing here needs
        import sapien
    return sapien.physx


def _scene(
    physx: Any,
    bodies: RigidBody,
    index: int,
    points: Float[np.ndarray, "K 3"],
    start: Float[np.ndarray, " 3"],
    depth: float,
    protocol: Protocol,
) -> tuple[Any, Any]:
    """A plane and body `index`, in a simulation of their own that looks `depth` ahead."""
    import sapien

    system = physx.PhysxCpuSystem()
    scene = sapien.Scene([system])
    system.timestep = protocol.timestep
    # MuJoCo takes the larger of two frictions and does not bounce.
    material = physx.PhysxMaterial(protocol.friction, protocol.friction, 0.0)
    ground, base = sapien.Entity(), physx.PhysxRigidStaticComponent()
    plane = physx.PhysxCollisionShapePlane(material=material)
    # Its normal is x.
    plane.local_pose = sapien.Pose(q=[np.sqrt(0.5), 0.0, -np.sqrt(0.5), 0.0])
    hull = physx.PhysxCollisionShapeConvexMesh(
        vertices=np.unique(points, axis=0).astype(np.float32),
        scale=np.ones(3, np.float32),
        material=material,
    )
    plane.contact_offset = hull.contact_offset = depth
    base.attach(plane)
    ground.add_component(base)
    scene.add_entity(ground)
    body = physx.PhysxRigidDynamicComponent()
    body.attach(hull)
    body.mass = float(bodies.mass[index])
    body.inertia = np.asarray(bodies.inertia[index], np.float32)
    body.cmass_local_pose = sapien.Pose(bodies.com[index], bodies.inertia_quat[index])
    body.linear_damping = body.angular_damping = 0.0
    body.set_sleep_threshold(0.0)
    entity = sapien.Entity()
    entity.add_component(body)
    entity.pose = sapien.Pose(start)
    scene.add_entity(entity)
    return scene, body


def _simulate(
    scene: Any, body: Any, points: Float[np.ndarray, "K 3"], depth: float, protocol: Protocol
) -> tuple[Float[np.ndarray, " 7"], int, bool]:
    """Steps to the protocol's end; returns pose, steps and whether it came to rest."""

    def advance() -> float:
        for _ in range(protocol.check_steps):
            scene.step()
        return max(np.abs(body.linear_velocity).max(), np.abs(body.angular_velocity).max())

    steps, rested = settling.follow(advance, lambda: _has_footing(body, points, depth), protocol)
    pose = body.entity_pose
    return np.concatenate([pose.p, pose.q]), steps, rested


def _has_footing(body: Any, points: Float[np.ndarray, "K 3"], depth: float) -> bool:
    """As in the other engines, but hard contacts keep feet above ground: `depth` of them count."""
    turn = to_matrix(np.asarray(body.entity_pose.q, np.float64)[None])[0]
    placed = points @ turn.T
    placed[:, 2] -= placed[:, 2].min() + depth
    return bool(settling.spans_area(placed, depth, np))
