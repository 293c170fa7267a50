"""C MuJoCo as DSO runs it: the whole mesh, inertia by its own compiler, all ten seconds.

Shares with the labels under test only how a file is read and set upright: hull, mass, inertia,
contacts and stepping are MuJoCo's.
"""

# The bindings of MuJoCo are compiled: type checkers see none of its names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence

import mujoco
import numpy as np
from jaxtyping import Float

from sim_mjx.bodies import BodyError
from sim_mjx.meshes import Mesh, start_vertices
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest
from sim_mjx.sizes import cores

PROTOCOL = Protocol()  # how vertices are set upright and scaled
TIMESTEP, STEPS = 1e-3, 10_000


def drop(meshes: Sequence[Mesh], *, jitter: float = 0.0, seed: int = 0) -> Rest:
    """Drops every mesh.

    Args:
        meshes: as loaded.
        jitter: standard deviation of noise on every coordinate, where the largest one is 0.5.
        seed: of the noise; that of a mesh also depends on its position.

    Returns:
        One entry a mesh; `invalid` where MuJoCo's compiler refuses it, with the reason it gives.
    """
    count = len(meshes)
    pose = np.tile(np.array([0.0, 0, 0, 1, 0, 0, 0]), (count, 1))
    steps, quiet = np.zeros(count, np.int64), np.zeros(count, bool)
    reasons: list[str | None] = [None] * count

    def one(i: int) -> None:
        try:
            vertices = start_vertices(meshes[i], PROTOCOL)
            if jitter:
                noise = np.random.default_rng([seed, i]).normal(size=vertices.shape)
                vertices = vertices + jitter * noise
            model = compile_model(vertices, meshes[i].triangles)
        except (BodyError, ValueError) as error:
            reasons[i] = str(error).splitlines()[0]
            return
        data = mujoco.MjData(model)
        mujoco.mj_step(model, data, nstep=STEPS)
        pose[i], steps[i] = data.qpos, STEPS
        quiet[i] = np.abs(data.qvel).max() < PROTOCOL.quiet_speed

    with concurrent.futures.ThreadPoolExecutor(cores()) as executor:
        list(executor.map(one, range(count)))
    return Rest.from_states(pose[:, :3], pose[:, 3:], steps, quiet, reasons)


def compile_model(vertices: Float[np.ndarray, "N 3"], triangles: np.ndarray) -> mujoco.MjModel:
    """A plane, and a free body that is the mesh with its lowest point on the plane.

    Raises:
        ValueError: if MuJoCo refuses the mesh.
    """
    spec = mujoco.MjSpec()
    spec.option.timestep = TIMESTEP
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1])
    mesh = spec.add_mesh(name="mesh", uservert=vertices.ravel(), userface=triangles.ravel())
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_LEGACY
    body = spec.worldbody.add_body(pos=[0, 0, -vertices[:, 2].min()])
    body.add_freejoint()
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="mesh")
    return spec.compile()
