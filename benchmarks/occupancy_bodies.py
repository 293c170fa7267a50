"""Bodies from occupancy at 64^3: JAX on the device against scipy on host threads, ms each.

    python benchmarks/occupancy_bodies.py --out occupancy.json
    python benchmarks/occupancy_bodies.py --tiny

Grids are leaning slabs on feet with rough surfaces. They lie on the device when the clock starts,
as a decoder leaves them: the host's time includes fetching them. Labels follow, drops of all bodies
through one stream.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import labels  # noqa: E402
from sim_mjx import Protocol, RigidBody, concatenate, device_occupancy, occupancy  # noqa: E402
from sim_mjx.sizes import cores  # noqa: E402
from sim_mjx.stream import DropStream  # noqa: E402

GRIDS, RESOLUTION = 256, 64


def grids(count: int, resolution: int) -> np.ndarray:
    """Logits of a shell each, as the decoder's occupancy is one."""
    random = np.random.default_rng(0)
    centre = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution - 0.5
    x, y, z = np.meshgrid(centre, centre, centre, indexing="ij")
    made = np.empty((count, resolution, resolution, resolution), np.float32)
    for logits in made:
        half, depth, tall = random.uniform([0.08, 0.08, 0.25], [0.2, 0.2, 0.45])
        lean, foot = random.uniform(-0.35, 0.35), random.uniform(0.12, 0.2, 2)
        upper = np.maximum(np.abs(x - lean * (z + 0.45)) - half, np.abs(y) - depth)
        upper = np.maximum(upper, np.abs(z + 0.45 - tall) - tall)
        lower = np.maximum(np.abs(x) - foot[0], np.abs(y) - foot[1])
        lower = np.maximum(lower, np.abs(z + 0.42) - 0.05)
        solid = np.minimum(upper, lower) + 1e-3 * random.normal(size=x.shape).astype(np.float32)
        logits[:] = -30 * np.maximum(solid, -solid - 3 / resolution)
    return made


def on_host(logits: jax.Array, threads: int) -> RigidBody:
    """Parts on threads; fetched first."""
    array = np.asarray(logits)
    parts = np.array_split(np.arange(len(array)), min(len(array), 4 * threads))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        made = pool.map(lambda rows: occupancy.bodies_from_occupancy(array[rows])[0], parts)
        return concatenate(list(made))


def timed(call: Callable[[], Any], count: int, repeats: int) -> tuple[dict[str, float], Any]:
    """Milliseconds a grid, the first call apart."""
    seconds, result = [], None
    for _ in range(repeats + 1):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
    best = 1e3 * float(np.median(seconds[1:])) / count
    return {"grids": count, "ms_a_grid": best, "first_s": seconds[0]}, result


def main() -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file; what it holds is not measured again")
    parser.add_argument("--limit", type=int, default=60, help="seconds a case may take")
    parser.add_argument("--tiny", action="store_true", help="four small grids")
    options = parser.parse_args()
    count, resolution = (4, 24) if options.tiny else (GRIDS, RESOLUTION)
    record = labels.Record(options.out, labels.about())
    logits = jax.block_until_ready(jax.numpy.asarray(grids(count, resolution)))
    found: dict[str, RigidBody] = {}

    def measured(name: str, call: Callable[[], RigidBody], repeats: int) -> None:
        def case() -> dict[str, Any]:
            numbers, found[name] = timed(call, count, repeats)
            return numbers

        record.measure(f"occupancy/{name}", case, options.limit)

    measured("device", lambda: device_occupancy.bodies_on_device(logits)[0], 3)
    measured("host-all-cores", lambda: on_host(logits, cores()), 1)
    measured("host-one-core", lambda: on_host(logits[: max(1, count // 16)], 1), 0 + 1)
    if "occupancy/host-one-core" in record.cases:
        one = record.cases["occupancy/host-one-core"]
        print(f"one core: {one['ms_a_grid'] * count / max(1, count // 16):.3f} ms a grid")
    if {"device", "host-all-cores"} <= found.keys():
        ours, theirs = found["device"], found["host-all-cores"]
        mass = float(np.abs(ours.mass / theirs.mass - 1).max())
        centre = float(np.abs(ours.com - theirs.com).max())
        print(f"largest difference: mass {mass:.2e} of it, centre {centre:.2e} m", flush=True)

    def drop() -> dict[str, Any]:
        bodies, protocol = found["device"], Protocol.preset("solid")
        many = bodies[np.arange(32 * len(bodies)) % len(bodies)]
        rest: Any = None
        for batch in (bodies[:1], many):  # the first compiles
            began = time.perf_counter()
            with DropStream(protocol) as stream:
                stream.put(batch)
                stream.close()
                ((_, rest),) = stream.results()
        seconds = time.perf_counter() - began
        return {
            "labels": len(many),
            "seconds": seconds,
            "labels_per_second": len(many) / seconds,
            "stable_percent": 100 * float(rest.stable(protocol).mean()),
        }

    record.measure("occupancy/labels", drop, options.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
