"""The referee: the same drop in C MuJoCo, one object at a time, threads over cores.

Same bodies, same protocol, same early stop, double precision, MuJoCo's own contact rule and its
default solver iterations: what the MJX labels are measured against, and the engine of record where
bit-stable labels matter more than speed.
"""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence

import mujoco
import numpy as np
from jaxtyping import Float

from sim_mjx import contact, settling, world
from sim_mjx.bodies import RigidBody
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest, known_reasons
from sim_mjx.sizes import cores

COMPILE_FAILED = "mujoco_rejects"


def drop(
    bodies: RigidBody,
    protocol: Protocol,
    *,
    reasons: Sequence[str | None] | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rest:
    """Drops every body in C MuJoCo; see `sim_mjx.drop` for arguments and result.

    Args:
        bodies: any number of objects.
        protocol: what is simulated; solver iterations and contact rule stay MuJoCo's own.
        reasons: per object None, or why it is invalid already.
        threads: objects simulated at the same time, by default one a core.
        progress: called with 1 for each finished object.
    """
    count, why = len(bodies), known_reasons(bodies, reasons)
    pose = np.tile(np.array([0.0, 0, 0, 1, 0, 0, 0]), (count, 1))
    steps, at_rest = np.zeros(count, np.int64), np.zeros(count, bool)
    points, start = bodies.body_points(), world.start_position(bodies)
    depth = protocol.skin * bodies.size()

    def one(i: int) -> None:
        if why[i] is not None:
            return
        try:
            model = compile_model(bodies, points[i], i, start[i], protocol)
        except ValueError:
            why[i] = COMPILE_FAILED
        else:
            pose[i], steps[i], at_rest[i] = simulate(model, points[i], depth[i], protocol)
        if progress is not None:
            progress(1)

    with concurrent.futures.ThreadPoolExecutor(threads or cores()) as pool:
        try:
            for done in [pool.submit(one, i) for i in range(count)]:
                done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C ends what has not begun
    return Rest.from_states(pose[:, :3], pose[:, 3:], steps, at_rest, why)


def compile_model(
    bodies: RigidBody,
    points: Float[np.ndarray, "K 3"],
    index: int,
    start: Float[np.ndarray, " 3"],
    protocol: Protocol,
) -> mujoco.MjModel:
    """A plane and body `index`: explicit inertia, and a mesh that only has hull points.

    Raises:
        ValueError: if MuJoCo refuses the mesh.
    """
    spec = world.ground(protocol)
    mesh = spec.add_mesh(name="hull", uservert=np.unique(points, axis=0).ravel())
    # The mesh's own inertia is not used; the convex mode is the one that never rejects a hull.
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX
    body = spec.worldbody.add_body(name="body", pos=start)
    body.add_freejoint()
    world.add_hull(body, "hull", protocol)
    body.explicitinertial = 1
    body.mass = bodies.mass[index]
    body.ipos = bodies.com[index]
    body.iquat = bodies.inertia_quat[index]
    body.inertia = bodies.inertia[index]
    return spec.compile()


def simulate(
    model: mujoco.MjModel,
    points: Float[np.ndarray, "K 3"],
    depth: float,
    protocol: Protocol,
) -> tuple[Float[np.ndarray, " 7"], int, bool]:
    """Steps one model to the protocol's end; returns pose, steps and whether it came to rest."""
    data = mujoco.MjData(model)

    def advance() -> float:
        mujoco.mj_step(model, data, nstep=protocol.check_steps)
        return np.abs(data.qvel).max()

    steps, rested = settling.follow(advance, lambda: _has_footing(data, points, depth), protocol)
    return data.qpos.copy(), steps, rested


def _has_footing(data: mujoco.MjData, points: Float[np.ndarray, "K 3"], depth: float) -> bool:
    world_points = points @ data.xmat[1].reshape(3, 3).T + data.xpos[1]
    return bool(contact.spans_area(world_points, depth, np))
