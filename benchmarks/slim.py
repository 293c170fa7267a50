"""Steps a second of the slim step, stock MJX, mujoco_warp and C, over batch and hull size.

    python benchmarks/run.py -f '^steps' --out steps.json            1k ... 131k worlds
    python benchmarks/run.py -f '^steps/1024w-64p/slim' --repeats 2  seconds, on a CPU

Each world drops one of the committed meshes of that hull size from a few millimetres, tilted and
turning a little, so that flying, rocking and resting bodies are all there. A chunk is 100 steps of
1 ms in one program; compile time stands apart, the first chunk is a warm-up, and the figure is the
median of the others. Arithmetic is float32 throughout; mujoco_warp (where it is installed) steps
the same bodies from the same states, with the same cap on solver iterations and its own tolerance.
C MuJoCo, in float64 and with its own solver's iterations, steps as many of these worlds as keep all
cores busy.
"""

from __future__ import annotations

import concurrent.futures
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks import measure, turn
from benchmarks.measure import GIB, Run
from sim_mjx import Protocol, RigidBody, concatenate, referee, referee_one, slim, world
from sim_mjx.meshes import body_from_mesh
from sim_mjx.sizes import cores

STEPS = 100
MESHES = Path(__file__).resolve().parent.parent / "tests" / "data" / "meshes"
# What makes a chunk. `slim` is one kernel, what labels are made with on a GPU. The others leave it
# to XLA: `slim-early` ends solver loops when no world needs them, the default on a CPU and a round
# trip to the host each round on an accelerator, where `slim-fixed` runs them all.
MJX = {
    "stock": world.simulate,
    "slim": lambda *arguments: slim.simulate_in_kernel(*arguments)[0],
    "slim-fixed": functools.partial(slim.simulate, early=False),
    "slim-early": functools.partial(slim.simulate, early=True),
}
WARP, C = "warp", "c"
C_WORLDS = 64  # a core: 20 ms of work between two waits
PACKAGES = ("jax", "mujoco", "mujoco-mjx", "mujoco-warp", "warp-lang")


class Engine(NamedTuple):
    """A batch that is ready to run.

    Attributes:
        chunk: 100 steps of every world, finished when it returns.
        poses: qpos of every world after them.
        trace_s: from Python to a program, s.
        compile_s: from that to machine code, s.
    """

    chunk: Callable[[], None]
    poses: Callable[[], np.ndarray]
    trace_s: float
    compile_s: float


def describe() -> dict[str, Any]:
    """Device and versions, for the record."""
    return {"device": jax.local_devices()[0].device_kind} | measure.versions(*PACKAGES)


def steps(run: Run, engine: str, worlds: int, points: int) -> dict[str, Any]:
    """Compiles and times chunks of 100 steps of every world."""
    protocol = Protocol.preset("dso-eval")
    worlds = min(worlds, C_WORLDS * cores()) if engine == C else worlds
    worlds = worlds if run.size == "full" else 2
    build = {WARP: warp_engine_of, C: c_engine_of}.get(engine)
    with turn.beside_others():
        build = build or functools.partial(mjx_engine_of, engine)
        ready = build(meshes(points, protocol), worlds, protocol)
    figures = measure.timed(ready.chunk, run.repeats)
    poses = ready.poses()
    if not np.isfinite(poses).all():
        raise SystemExit("a state is not finite")
    peak = None if engine == C else (jax.local_devices()[0].memory_stats() or {})
    peak = (peak or {}).get("peak_bytes_in_use")
    return figures | {
        "worlds": worlds,
        "steps_per_s": round(worlds * STEPS / figures["ms"] * 1e3),
        "trace_s": round(ready.trace_s, 2),
        "compile_s": round(ready.compile_s, 2),
        "mean_tilt_cosine": round(_upright(poses), 4),
        **({} if peak is None else {"peak_gib": peak / GIB}),
    }


def mjx_engine_of(name: str, bodies: RigidBody, worlds: int, protocol: Protocol) -> Engine:
    """A step of ours, `STEPS` times in one program."""
    chosen, start = scene(bodies, worlds)
    different = world.simulation_body(bodies, protocol)
    body = jax.tree.map(lambda leaf: jnp.take(jnp.asarray(leaf), chosen, axis=0), different)
    held = [world.State(*(jnp.asarray(part, jnp.float32) for part in start))]
    on_cpu = name == "slim" and not slim.has_kernel(jax.local_devices()[0])
    simulate = functools.partial(MJX["slim-early" if on_cpu else name], protocol)
    begun = time.perf_counter()
    lowered = jax.jit(lambda body, state: simulate(body, state, STEPS)).lower(body, held[0])
    traced = time.perf_counter()
    compiled = lowered.compile()
    ready = time.perf_counter()

    def chunk() -> None:
        held[0] = jax.block_until_ready(compiled(body, held[0]))

    return Engine(chunk, lambda: np.asarray(held[0].qpos), traced - begun, ready - traced)


def c_engine_of(bodies: RigidBody, worlds: int, protocol: Protocol) -> Engine:
    """C MuJoCo on all cores; in threads, since a world's chunk is one call that holds no lock."""
    chosen, (pose, speed, _) = scene(bodies, worlds)
    begun = time.perf_counter()
    models = [referee_one.compile_model(body, protocol) for body in referee.place(bodies, protocol)]
    model = [models[i] for i in chosen]
    data = [mujoco.MjData(one) for one in model]  # pyright: ignore[reportAttributeAccessIssue]
    for i, one in enumerate(data):
        one.qpos[:], one.qvel[:] = pose[i], speed[i]
    ready = time.perf_counter()
    pool = concurrent.futures.ThreadPoolExecutor(cores())

    def advance(i: int) -> None:
        mujoco.mj_step(model[i], data[i], nstep=STEPS)  # pyright: ignore[reportAttributeAccessIssue]

    def chunk() -> None:
        for _ in pool.map(advance, range(worlds)):
            pass

    return Engine(chunk, lambda: np.stack([one.qpos for one in data]), 0.0, ready - begun)


def warp_engine_of(bodies: RigidBody, worlds: int, protocol: Protocol) -> Engine:
    """mujoco_warp; on a GPU a chunk is one captured graph."""
    import warp  # pyright: ignore[reportMissingImports]

    from sim_mjx import warp_engine

    begun = time.perf_counter()
    batch = warp_engine._Chunk(bodies, protocol, worlds)  # what its drop runs on
    chosen, start = scene(bodies, worlds)
    batch._load(chosen, np.arange(worlds))
    for name, values in zip(("qpos", "qvel", "qacc_warmstart"), start, strict=True):
        getattr(batch.data, name).assign(values.astype(np.float32))
    warp.synchronize()
    ready = time.perf_counter()

    def chunk() -> None:
        batch.advance()
        warp.synchronize()

    return Engine(chunk, lambda: batch.data.qpos.numpy(), 0.0, ready - begun)


def scene(bodies: RigidBody, worlds: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Which body each world has, and its start (qpos, qvel, last acceleration), for all engines."""
    rng = np.random.default_rng(0)
    chosen = np.arange(worlds) % len(bodies)
    tilt = Rotation.from_rotvec(rng.normal(size=(worlds, 3)) * [0.05, 0.05, 1.0])
    up = tilt.as_matrix()[:, 2]
    heights, points = np.empty(worlds), bodies.body_points()
    for i in range(len(bodies)):
        mine = slice(i, None, len(bodies))
        heights[mine] = (up[mine] @ np.unique(points[i], axis=0).T).min(axis=1)
    place = np.stack([0 * heights, 0 * heights, 2e-3 - heights], axis=1)
    pose = np.concatenate([place, tilt.as_quat()[:, [3, 0, 1, 2]]], axis=1)
    speed = 0.1 * rng.normal(size=(worlds, 6))
    return chosen, (pose, speed, np.zeros_like(speed))


def meshes(points: int, protocol: Protocol) -> RigidBody:
    """The committed meshes whose hull fits that many points and no smaller bucket."""
    bodies = [body_from_mesh(path, protocol) for path in sorted(MESHES.glob("*.obj"))]
    bodies = [body for body in bodies if body.points.shape[1] == points]
    if not bodies:
        raise SystemExit(f"{points} points: no committed mesh has a hull of that bucket")
    return concatenate(bodies)


def _upright(qpos: np.ndarray) -> float:
    """Mean z of the up axis: engines that agree have equal figures."""
    return float(np.mean(1 - 2 * (qpos[:, 4] ** 2 + qpos[:, 5] ** 2)))
