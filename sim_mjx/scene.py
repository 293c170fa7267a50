"""What every model is made of, in MJX, in C and in mujoco_warp: a plane and one hull on it.

Without JAX, which the processes that run C MuJoCo do without.
"""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import mujoco

from sim_mjx.protocol import Protocol


def ground(protocol: Protocol) -> mujoco.MjSpec:
    """A plane under the protocol's gravity."""
    spec = mujoco.MjSpec()
    spec.option.timestep = protocol.timestep
    spec.option.gravity = [0.0, 0.0, -protocol.gravity]
    spec.worldbody.add_geom(
        type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0.0, 0.0, 1.0], friction=_friction(protocol)
    )
    return spec


def add_hull(body: mujoco.MjsBody, mesh: str, protocol: Protocol) -> None:
    """Gives a body of a `ground` its one geom, the mesh of that name."""
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh, friction=_friction(protocol))


def _friction(protocol: Protocol) -> list[float]:
    return [protocol.friction, 0.005, 0.0001]
