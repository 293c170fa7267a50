"""The drop in mujoco_warp, NVIDIA's MuJoCo for CUDA: an optional engine.

All meshes of a chunk live in one model; which of them a world has, and its mass properties, are
rows of the model's batched arrays, so a world whose object has finished takes the next one. The
contact rule is MuJoCo 4's own, arithmetic is float32, stops and tests are those of the other
engines. Needs the packages `mujoco-warp` and `warp-lang`, on a GPU to be fast.

Legend: B bodies of a chunk, S worlds.
"""

# The bindings of MuJoCo and warp are compiled: type checkers see few of their names.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Int

from sim_mjx import rotations, scene, settling, world
from sim_mjx.bodies import RigidBody
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest

REVISION = 2  # part of the engine's version; since 2 the solver has its own tolerance
CHUNK = 8192  # meshes in one model: MuJoCo takes a millisecond to compile each
SLOTS = 8192  # worlds
CONTACTS, ROWS = 8, 32  # a convex body on a plane has four contacts of four rows


def drop(
    bodies: RigidBody,
    protocol: Protocol,
    *,
    slots: int = SLOTS,
    progress: Callable[[int], None] | None = None,
) -> Rest:
    """Drops every body in mujoco_warp; see `sim_mjx.drop` for arguments and result.

    Raises:
        ImportError: the packages are not installed.
    """
    parts = []
    for first in range(0, len(bodies), CHUNK):
        chunk = bodies[first : first + CHUNK]
        parts.append(_Chunk(chunk, protocol, min(slots, len(chunk))).run(progress))
    states = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    pose, steps, at_rest = states
    return Rest.from_states(pose[:, :3], pose[:, 3:], steps, at_rest, [None] * len(bodies))


class _Chunk:
    """Bodies in one model, and the worlds that they pass through."""

    def __init__(self, bodies: RigidBody, protocol: Protocol, slots: int) -> None:
        import mujoco_warp
        import warp

        warp.config.log_level = warp.LOG_WARNING  # it tells of every kernel
        self._step = mujoco_warp.step
        self._warp, self.protocol, self.slots = warp, protocol, slots
        self.points, self.start = bodies.body_points(), world.start_position(bodies)
        self.depth = protocol.skin * bodies.size()
        host = _compile(bodies, self.points, protocol)
        self.rows = _rows(host, bodies)
        self.model = mujoco_warp.put_model(host)
        # The iterations are the protocol's, and reaching their number is no accident.
        self.model.opt.warn_overflow &= ~mujoco_warp.OverflowType.ITERATIONS
        self.data = mujoco_warp.put_data(
            host, mujoco.MjData(host), nworld=slots, nconmax=CONTACTS, njmax=ROWS
        )
        for name, values in self.rows.items():
            old = getattr(self.model, name)
            wide = np.repeat(old.numpy(), slots, axis=0)
            wide[:, 1] = values[np.zeros(slots, int)]
            setattr(self.model, name, warp.array(wide, dtype=old.dtype))
        self.advance = self._program()

    def run(
        self,
        progress: Callable[[int], None] | None,
        drops: Int[np.ndarray, " n"] | None = None,
    ) -> tuple[np.ndarray, ...]:
        """End pose, steps and whether it came to rest, of every drop.

        Args:
            progress: called with the number of drops that have just ended.
            drops: the body of each; by default every body once.
        """
        drops = np.arange(len(self.start)) if drops is None else drops
        count, protocol = len(drops), self.protocol
        pose, total = np.zeros((count, 7)), np.zeros(count, np.int64)
        rested = np.zeros(count, bool)
        waiting = iter(range(count))
        owner, active = np.zeros(self.slots, int), np.zeros(self.slots, bool)
        steps, checked = np.zeros(self.slots, int), settling.begin((self.slots,), np)
        minimum = round(protocol.minimum_time / protocol.timestep)
        while True:
            fresh = np.flatnonzero(~active)
            taken = list(itertools.islice(waiting, len(fresh)))
            fresh = fresh[: len(taken)]
            owner[fresh], active[fresh], steps[fresh] = taken, True, 0
            for values, first in zip(checked, settling.begin((), np), strict=True):
                values[fresh] = first
            if not active.any():
                return pose, total, rested
            if len(fresh):
                self._load(drops[owner], fresh)
            self.advance()
            steps += protocol.check_steps
            qpos, qvel = self.data.qpos.numpy(), self.data.qvel.numpy()
            speed = np.abs(qvel).max(axis=1)
            still = active & (speed < protocol.quiet_speed)
            if still.any():
                still[still] = self._has_footing(drops[owner[still]], qpos[still])
            checked = settling.check(checked, speed, still, protocol, np)
            at_rest = settling.at_rest(checked, protocol)
            done = (steps >= protocol.steps) | ~np.isfinite(speed)
            if protocol.early_stop:
                done |= at_rest & (steps >= minimum)
            done &= active
            ended = owner[done]
            pose[ended], total[ended], rested[ended] = qpos[done], steps[done], at_rest[done]
            active &= ~done
            if progress is not None and done.any():
                progress(int(done.sum()))

    def _load(self, owner: Int[np.ndarray, " S"], fresh: Int[np.ndarray, " n"]) -> None:
        """Puts bodies into worlds, at their start; arrays stay where a captured graph has them."""
        for name, values in self.rows.items():
            array = getattr(self.model, name)
            wide = array.numpy()
            wide[fresh, 1] = values[owner[fresh]]
            array.assign(wide)
        start = np.zeros((len(fresh), 7))
        start[:, :3], start[:, 3] = self.start[owner[fresh]], 1.0
        for name, values in {"qpos": start, "qvel": 0.0, "qacc_warmstart": 0.0}.items():
            array = getattr(self.data, name)
            wide = array.numpy()
            wide[fresh] = values
            array.assign(wide)

    def _program(self) -> Callable[[], None]:
        """Runs to the next check; on a GPU as one captured graph, since launches cost most."""

        def steps() -> None:
            for _ in range(self.protocol.check_steps):
                self._step(self.model, self.data)

        if not self._warp.get_device().is_cuda:
            return steps
        self._step(self.model, self.data)  # compiles what a capture may not
        with self._warp.ScopedCapture() as capture:
            steps()
        return lambda: self._warp.capture_launch(capture.graph)

    def _has_footing(
        self, bodies: Int[np.ndarray, " n"], qpos: Float[np.ndarray, "n 7"]
    ) -> Bool[np.ndarray, " n"]:
        """`settling.spans_area` of many at once."""
        qpos = qpos.astype(np.float64)
        turn = rotations.to_matrix(qpos[:, 3:])
        points = turn @ self.points[bodies].transpose(0, 2, 1) + qpos[:, :3, None]
        depth, flat, every = self.depth[bodies], points[:, :2], np.arange(len(bodies))
        below, first = points[:, 2] < 0, points[:, 2].argmin(axis=1)
        away = flat - flat[every, :, first][:, :, None]
        reach = np.where(below, (away**2).sum(axis=1), -1.0)
        along = away[every, :, reach.argmax(axis=1)]
        length = np.sqrt((along**2).sum(axis=1))
        across = np.abs(away[:, 0] * along[:, 1, None] - away[:, 1] * along[:, 0, None])
        across = np.where(below, across, 0.0).max(axis=1)
        return across > 0.1 * depth * np.maximum(length, 0.1 * depth)


def _compile(
    bodies: RigidBody, points: Float[np.ndarray, "B K 3"], protocol: Protocol
) -> mujoco.MjModel:
    """A plane and one body, with the meshes of all bodies to choose from."""
    spec = scene.ground(protocol)
    spec.option.iterations = protocol.solver_iterations
    spec.option.ls_iterations = protocol.linesearch_iterations
    spec.option.disableflags = int(mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
    for i in range(len(bodies)):
        mesh = spec.add_mesh(name=f"{i}", uservert=np.unique(points[i], axis=0).ravel())
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX
    body = spec.worldbody.add_body(name="body")
    body.add_freejoint()
    scene.add_hull(body, "0", protocol)
    return spec.compile()


def _rows(host: mujoco.MjModel, bodies: RigidBody) -> dict[str, Any]:
    """What a body puts into entry 1 (the world and the plane are 0) of the model's arrays."""
    count = len(bodies)
    inverse = np.stack([1 / bodies.mass, (1 / bodies.inertia).mean(axis=1)], axis=1)
    low, high = np.zeros((count, 3)), np.zeros((count, 3))
    radius = np.zeros(count)
    for i in range(count):
        first = host.mesh_vertadr[i]
        vertices = host.mesh_vert[first : first + host.mesh_vertnum[i]]
        low[i], high[i] = vertices.min(axis=0), vertices.max(axis=0)
        radius[i] = np.linalg.norm(vertices, axis=1).max()
    return {
        "geom_dataid": np.arange(count),
        "geom_pos": host.mesh_pos[:count],
        "geom_quat": host.mesh_quat[:count],
        "geom_rbound": radius,
        "geom_aabb": np.stack([(low + high) / 2, (high - low) / 2], axis=1),
        "body_mass": bodies.mass,
        "body_subtreemass": bodies.mass,
        "body_inertia": bodies.inertia,
        "body_ipos": bodies.com,
        "body_iquat": bodies.inertia_quat,
        "body_invweight0": inverse,
    }
