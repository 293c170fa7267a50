"""One object in C MuJoCo: what the referee does with it, in this process or in a worker's.

A worker imports numpy, scipy and MuJoCo, never JAX.
"""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Float

from sim_mjx import scene, settling
from sim_mjx.protocol import Protocol

COMPILE_FAILED = "mujoco_rejects"


class Placed(NamedTuple):
    """One body at its start, in float64; the numbers of a `bodies.RigidBody`."""

    points: Float[np.ndarray, "K 3"]  # in the body frame
    mass: float
    com: Float[np.ndarray, " 3"]
    inertia: Float[np.ndarray, " 3"]
    inertia_quat: Float[np.ndarray, " 4"]
    start: Float[np.ndarray, " 3"]  # of the body frame
    depth: float  # of the contact skin, m


class End(NamedTuple):
    """How one object ended."""

    pose: Float[np.ndarray, " 7"]
    steps: int
    at_rest: bool


class DropError(RuntimeError):
    """What was raised over an object, in a worker: its traceback."""


def worker() -> Callable[[tuple[Placed, Protocol]], End | str | DropError]:
    """What a worker process answers with."""

    def answer(item: tuple[Placed, Protocol]) -> End | str | DropError:
        try:
            return drop_one(*item)
        except Exception:  # noqa: BLE001 - the caller raises it
            return DropError(traceback.format_exc())

    return answer


def drop_one(body: Placed, protocol: Protocol) -> End | str:
    """How the body ends, or the reason why it cannot be dropped."""
    try:
        model = compile_model(body, protocol)
    except ValueError:
        return COMPILE_FAILED
    return simulate(model, body, protocol)


def compile_model(body: Placed, protocol: Protocol) -> mujoco.MjModel:
    """A plane and the body: explicit inertia, and a mesh that only has hull points.

    Raises:
        ValueError: if MuJoCo refuses the mesh.
    """
    spec = scene.ground(protocol)
    mesh = spec.add_mesh(name="hull", uservert=np.unique(body.points, axis=0).ravel())
    # The mesh's own inertia is not used; the convex mode is the one that never rejects a hull.
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX
    added = spec.worldbody.add_body(name="body", pos=body.start)
    added.add_freejoint()
    scene.add_hull(added, "hull", protocol)
    added.explicitinertial = 1
    added.mass = body.mass
    added.ipos = body.com
    added.iquat = body.inertia_quat
    added.inertia = body.inertia
    return spec.compile()


def simulate(model: mujoco.MjModel, body: Placed, protocol: Protocol) -> End:
    """Steps one model to its rest or the protocol's end."""
    data = mujoco.MjData(model)

    def advance() -> float:
        mujoco.mj_step(model, data, nstep=protocol.check_steps)
        return np.abs(data.qvel).max()

    steps, rested = settling.follow(advance, lambda: _has_footing(data, body), protocol)
    return End(data.qpos.copy(), steps, rested)


def _has_footing(data: mujoco.MjData, body: Placed) -> bool:
    world_points = body.points @ data.xmat[1].reshape(3, 3).T + data.xpos[1]
    return bool(settling.spans_area(world_points, body.depth, np))
