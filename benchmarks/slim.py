"""Steps a second of the slim step, stock MJX and mujoco_warp, over batch and hull size.

    python benchmarks/slim.py --out benchmarks/results/slim.json     # 1k ... 131k worlds
    python benchmarks/slim.py --worlds 16,64 --chunks 2              # seconds, on a CPU
    python benchmarks/slim.py -f 'slim.*-64p'                        # cases whose name matches

Each world drops one of the committed meshes of that hull size from a few millimetres, tilted and
turning a little, so that flying, rocking and resting bodies are all there. A chunk is 100 steps of
1 ms in one program; compile time stands apart, the first chunk is a warm-up, and the figure is the
median of the others. Arithmetic is float32 throughout; mujoco_warp (where it is installed) steps
the same bodies from the same states, all solver iterations each step; let JAX leave it memory with
XLA_PYTHON_CLIENT_PREALLOCATE=false. Lines read `name.metric value`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sim_mjx import Protocol, RigidBody, concatenate, slim, world  # noqa: E402
from sim_mjx.meshes import body_from_mesh  # noqa: E402

STEPS = 100
WORLDS = (1024, 8192, 32768, 131072)
POINTS = (64, 256)
MESHES = ROOT / "tests" / "data" / "meshes"
# What makes a chunk. `slim-early` ends solver loops when no world needs them: a round trip to the
# host each round on an accelerator, and the default on a CPU.
MJX = {
    "stock": world.simulate,
    "slim": functools.partial(slim.simulate, early=False),
    "slim-early": functools.partial(slim.simulate, early=True),
}
WARP = "warp"


@dataclasses.dataclass(frozen=True)
class Case:
    """One engine on one shape of batch."""

    engine: str
    worlds: int
    points: int

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.worlds}w-{self.points}p"


def main() -> int:
    """Runs the cases and writes one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-f", "--filter", default="", help="regular expression over case names")
    parser.add_argument("--worlds", type=_numbers, default=WORLDS, help="comma-separated")
    parser.add_argument("--points", type=_numbers, default=POINTS, help="64, 256 or both")
    parser.add_argument("--chunks", type=int, default=10, help="timed chunks of 100 steps")
    parser.add_argument("--contact", choices=("c4", "skin"), default="c4")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    protocol = dataclasses.replace(Protocol.preset("dso-eval"), contact=options.contact)
    engines = [*MJX, *([WARP] if importlib.util.find_spec("mujoco_warp") else [])]
    cases = [
        case
        for points in options.points
        for worlds in options.worlds
        for case in (Case(engine, worlds, points) for engine in engines)
        if re.search(options.filter, case.name)
    ]
    if not cases:
        parser.error(f"no case matches {options.filter!r}")
    report = {
        "command": " ".join(["python", "benchmarks/slim.py", *sys.argv[1:]]),
        "device": jax.local_devices()[0].device_kind,
        "backend": jax.default_backend(),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "mujoco": mujoco.__version__,
            **{name: _version(name) for name in ("mujoco-mjx", "mujoco-warp", "warp-lang")},
        },
        "protocol": protocol.to_dict(),
        "cases": [],
    }
    scenes = {points: _bodies(points, protocol) for points in options.points}
    for case in cases:
        result = measure(case, scenes[case.points], protocol, options.chunks)
        report["cases"].append({"name": case.name, **dataclasses.asdict(case), **result})
        for metric, value in result.items():
            print(f"{case.name}.{metric} {value}", flush=True)
        if options.out:  # after every case: the largest may not fit the device
            options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


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


def measure(case: Case, bodies: RigidBody, protocol: Protocol, chunks: int) -> dict[str, Any]:
    """Compiles and times one case."""
    build = warp_engine_of if case.engine == WARP else mjx_engine_of
    engine = build(case, bodies, protocol)
    seconds = []
    for _ in range(chunks + 1):
        before = time.perf_counter()
        engine.chunk()
        seconds.append(time.perf_counter() - before)
    poses = engine.poses()
    if not np.isfinite(poses).all():
        raise SystemExit(f"{case.name}: a state is not finite")
    median = float(np.median(seconds[1:]))
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "steps_per_second": round(case.worlds * STEPS / median),
        "microseconds_per_step": round(median / STEPS * 1e6, 1),
        "fastest_chunk_s": round(min(seconds[1:]), 6),
        "slowest_chunk_s": round(max(seconds[1:]), 6),
        "trace_s": round(engine.trace_s, 2),
        "compile_s": round(engine.compile_s, 2),
        # Of JAX in this process so far, so only the largest case of a run is its own.
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "mean_tilt_cosine": round(_upright(poses), 4),
    }


def mjx_engine_of(case: Case, bodies: RigidBody, protocol: Protocol) -> Engine:
    """A step of ours, `STEPS` times in one program."""
    chosen, start = scene(bodies, case.worlds)
    body = jax.device_put(world.simulation_body(chosen, protocol))
    held = [world.State(*(jnp.asarray(part, jnp.float32) for part in start))]
    simulate = functools.partial(MJX[case.engine], protocol)
    begun = time.perf_counter()
    lowered = jax.jit(lambda body, state: simulate(body, state, STEPS)).lower(body, held[0])
    traced = time.perf_counter()
    compiled = lowered.compile()
    ready = time.perf_counter()

    def chunk() -> None:
        held[0] = jax.block_until_ready(compiled(body, held[0]))

    return Engine(chunk, lambda: np.asarray(held[0].qpos), traced - begun, ready - traced)


def warp_engine_of(case: Case, bodies: RigidBody, protocol: Protocol) -> Engine:
    """mujoco_warp; on a GPU a chunk is one captured graph."""
    import warp  # pyright: ignore[reportMissingImports]

    from sim_mjx import warp_engine

    begun = time.perf_counter()
    batch = warp_engine._Chunk(bodies, protocol, case.worlds)  # what its drop runs on
    batch._load(np.arange(case.worlds) % len(bodies), np.arange(case.worlds))
    _, start = scene(bodies, case.worlds)
    for name, values in zip(("qpos", "qvel", "qacc_warmstart"), start, strict=True):
        getattr(batch.data, name).assign(values.astype(np.float32))
    warp.synchronize()
    ready = time.perf_counter()

    def chunk() -> None:
        batch.advance()
        warp.synchronize()

    return Engine(chunk, lambda: batch.data.qpos.numpy(), 0.0, ready - begun)


def scene(bodies: RigidBody, worlds: int) -> tuple[RigidBody, tuple[np.ndarray, ...]]:
    """A body and a start (qpos, qvel, last acceleration) of each world, equal for every engine."""
    rng = np.random.default_rng(0)
    chosen = bodies[np.arange(worlds) % len(bodies)]
    tilt = Rotation.from_rotvec(rng.normal(size=(worlds, 3)) * [0.05, 0.05, 1.0])
    up = tilt.as_matrix()[:, 2]
    heights = np.concatenate(
        [
            np.einsum("bi,bki->bk", up[part], chosen[part].body_points()).min(axis=1)
            for part in np.array_split(np.arange(worlds), -(-worlds // 4096))
        ]
    )
    place = np.stack([0 * heights, 0 * heights, 2e-3 - heights], axis=1)
    pose = np.concatenate([place, tilt.as_quat()[:, [3, 0, 1, 2]]], axis=1)
    speed = 0.1 * rng.normal(size=(worlds, 6))
    return chosen, (pose, speed, np.zeros_like(speed))


def _bodies(points: int, protocol: Protocol) -> RigidBody:
    """The committed meshes whose hull fits that many points and no smaller bucket."""
    bodies = [body_from_mesh(path, protocol) for path in sorted(MESHES.glob("*.obj"))]
    bodies = [body for body in bodies if body.points.shape[1] == points]
    if not bodies:
        raise SystemExit(f"--points {points}: no committed mesh has a hull of that bucket")
    return concatenate(bodies)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _upright(qpos: np.ndarray) -> float:
    """Mean z of the up axis: engines that agree have equal figures."""
    return float(np.mean(1 - 2 * (qpos[:, 4] ** 2 + qpos[:, 5] ** 2)))


if __name__ == "__main__":
    raise SystemExit(main())
