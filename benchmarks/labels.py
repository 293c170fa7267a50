"""Labels a second: by batch, hull size, early stop, contact rule and engine; preparation apart.

    python benchmarks/labels.py                          everything that fits this machine
    python benchmarks/labels.py -f 'slim|mujoco'         cases whose name matches
    python benchmarks/labels.py --quick                  a few objects a case: does it run at all?
    python benchmarks/labels.py --meshes 'meshes/**/*.glb' --out labels.json

Each case drops the same objects twice: the first run compiles, the second counts. Objects are
convex solids made from a fixed seed, or, with --meshes, bodies of those files; a case takes as many
of them as it has slots times --rounds, repeating them. Lines read `name.metric value`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from scipy.spatial import ConvexHull

from sim_mjx import Protocol, RigidBody, concatenate, job, referee, warp_engine
from sim_mjx.buckets import BUCKETS
from sim_mjx.drop import Step, drop
from sim_mjx.engines import resolve
from sim_mjx.label import expand_paths
from sim_mjx.meshes import Mesh, body_from_triangles
from sim_mjx.plan import make_plan
from sim_mjx.prepare import prepare
from sim_mjx.sizes import cores
from sim_mjx.task import Task

UNIQUE = 64  # different solids of a size
CPU_SLOTS = (16, 64, 256)
ACCELERATOR_SLOTS = (1024, 8192, 32768, 131072)


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to make labels.

    Attributes:
        engine: `mjx`, `mujoco` or `mujoco_warp`, whose time includes compiling its model.
        step: of MJX.
        slots: objects side by side on a device; for C, only how many are dropped.
        hull: support points of each object, a bucket.
        early_stop: whether an object that has come to rest is let go.
        contact: the contact rule, of MJX alone.
    """

    engine: str = "mjx"
    step: Step = "slim"
    slots: int = 0
    hull: int = 64
    early_stop: bool = True
    contact: str = "c4"

    @property
    def name(self) -> str:
        engine = self.engine if self.engine != "mjx" else f"mjx-{self.step}"
        stop = "stop" if self.early_stop else "full"
        return f"{engine}/{self.slots}x{self.hull}/{stop}/{self.contact}"


def cases(slots: tuple[int, ...]) -> list[Case]:
    """One change at a time from a base case, and every engine at every batch."""
    base = Case(slots=slots[len(slots) // 2])
    listed = [Case(step=step, slots=n) for step in ("slim", "stock") for n in slots]
    listed += [dataclasses.replace(base, hull=bucket.points) for bucket in BUCKETS[:3]]
    listed += [
        dataclasses.replace(base, early_stop=False),
        dataclasses.replace(base, contact="skin"),
    ]
    c = dataclasses.replace(base, engine="mujoco", slots=slots[0])
    listed += [c, dataclasses.replace(c, early_stop=False)]
    if importlib.util.find_spec("mujoco_warp") is not None:
        listed += [dataclasses.replace(c, engine="mujoco_warp", slots=n) for n in slots[:2]]
    return list(dict.fromkeys(listed))


def solids(hull: int) -> RigidBody:
    """Convex solids with a flat base whose hulls fill a bucket to between a quarter and all."""
    random = np.random.default_rng(hull)
    bodies = []
    while len(bodies) < UNIQUE:
        directions = random.normal(size=(round(0.9 * hull), 3))
        points = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        points *= random.uniform(0.3, 1.0, 3)
        points[:, 0] += random.uniform(-0.8, 0.8) * points[:, 2]
        points[:, 2] = np.maximum(points[:, 2], random.uniform(0.6, 0.9) * points[:, 2].min())
        mesh = Mesh(points, ConvexHull(points).simplices)
        body = body_from_triangles(mesh, Protocol(inertia="convex"))
        if body.points.shape[1] == hull:
            bodies.append(body)
    return concatenate(bodies)


def measure(case: Case, bodies: RigidBody, rounds: int) -> dict[str, Any]:
    """Seconds of the second of two equal runs, and what was done in them."""
    device = jax.local_devices()[0]
    devices = 1 if device.platform == "cpu" else jax.local_device_count()
    count = case.slots * rounds * (devices if case.engine == "mjx" else 1)
    many = bodies[np.arange(count) % len(bodies)]
    protocol = Protocol(early_stop=case.early_stop, contact=case.contact)  # type: ignore[arg-type]
    run: Callable
    if case.engine == "mujoco_warp":
        run = functools.partial(warp_engine.drop, many, protocol, slots=case.slots)
    elif case.engine == "mujoco":
        run = functools.partial(referee.drop, many, protocol)
    else:
        run = functools.partial(drop, many, protocol, slots=case.slots, step=case.step)
    first, _ = _timed(run)
    arrivals: list[tuple[float, int]] = []
    started = time.perf_counter()
    rest = run(progress=lambda n: arrivals.append((time.perf_counter() - started, n)))
    seconds = time.perf_counter() - started
    steps = int(rest.steps.sum())
    return {
        "objects": count,
        "seconds": seconds,
        "first_run_seconds": first,
        "seconds_to_99_percent": _reached(arrivals, 0.99 * count),
        "labels_per_second": count / seconds,
        "steps_per_second": steps / seconds,
        "mean_steps": steps / count,
        "stable_percent": 100 * float(rest.stable(protocol).mean()),
        "moving_percent": 100 * float((rest.status == "moving").mean()),
        "device_bytes_peak": _peak_bytes(),
    }


def preparation(paths: list[pathlib.Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files to bodies: in this process, on all cores, and once they are in the cache."""
    protocol = Protocol()
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(folder)
        ways: dict[str, dict[str, Any]] = {
            "prepare/one-process": {"workers": 0},
            "prepare/all-cores": {"workers": cores()},
            "prepare/filling-cache": {"workers": cores(), "cache": cache},
            "prepare/from-cache": {"workers": cores(), "cache": cache},
        }
        for name, options in ways.items():
            seconds, bodies = _timed(lambda o=options: _count(prepare(paths, protocol, **o)))
            rate = len(paths) / seconds
            yield (
                name,
                {
                    "files": len(paths),
                    "bodies": bodies,
                    "seconds": seconds,
                    "files_per_second": rate,
                    "milliseconds_a_file": 1e3 / rate,
                },
            )


def jobs(paths: list[pathlib.Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files to a table, end to end, by each engine; then again from cached bodies."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name in ("mjx", "mujoco"):
            for bodies in ("from-files", "from-cache"):
                cache = root / "cache" if bodies == "from-cache" else None
                task, out, clock = Task(Protocol(), resolve(name)), root / "l.parquet", job.Clock()
                if cache is not None:
                    _count(prepare(paths, task.protocol, cache=cache))
                plan = make_plan(paths, task, out, overwrite=True)
                seconds, _ = _timed(lambda: job.run(plan, task, out, cache=cache, clock=clock))  # noqa: B023
                yield (
                    f"job/{name}/{bodies}",
                    {
                        "files": len(paths),
                        "seconds": seconds,
                        "labels_per_second": len(paths) / seconds,
                        **dataclasses.asdict(clock),
                    },
                )


def _count(prepared) -> int:
    return sum(item.body is not None for item in prepared)


def _reached(arrivals: list[tuple[float, int]], wanted: float) -> float | None:
    """When so many labels were there: what is left is the tail of objects that roll on."""
    done = 0
    for seconds, count in sorted(arrivals):
        done += count
        if done >= wanted:
            return seconds
    return None


def _timed(call: Callable) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _peak_bytes() -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")


def _bodies_of(paths: list[pathlib.Path]) -> dict[int, RigidBody]:
    """Bodies of files by the points of their bucket."""
    groups: dict[int, list[RigidBody]] = {}
    for item in prepare(paths, Protocol()):
        if item.body is not None:
            groups.setdefault(item.body.points.shape[1], []).append(item.body)
    return {points: concatenate(members) for points, members in groups.items()}


def main(argv: list[str] | None = None) -> None:
    """Runs the cases and prints or writes what they gave."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-f", "--filter", default="", help="regular expression on case names")
    parser.add_argument("--rounds", type=int, default=2, help="objects a slot; default: 2")
    parser.add_argument("--meshes", nargs="*", default=[], help="files, folders or globs")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest batch")
    parser.add_argument("--out", help="JSON file for the results")
    options = parser.parse_args(argv)
    device = jax.local_devices()[0]
    slots = CPU_SLOTS if device.platform == "cpu" else ACCELERATOR_SLOTS
    if options.quick:
        slots, options.rounds = slots[:1], 1
    results: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/labels.py", *(argv or sys.argv[1:])]),
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "engines": [resolve(name).version for name in ("mjx", "mujoco")],
        "cases": {},
    }

    def record(name: str, numbers: dict[str, Any]) -> None:
        results["cases"][name] = numbers
        for metric, value in numbers.items():
            sys.stdout.write(f"{name}.{metric} {value}\n")
        sys.stdout.flush()

    paths = expand_paths(options.meshes) if options.meshes else []
    if paths and re.search(options.filter, "prepare"):
        for name, numbers in preparation(paths):
            record(name, numbers)
    if paths and re.search(options.filter, "job"):
        for name, numbers in jobs(paths):
            record(name, numbers)
    real = _bodies_of(paths) if paths else {}
    for case in cases(slots):
        if re.search(options.filter, case.name):
            bodies = real.get(case.hull) or solids(case.hull)
            record(case.name, measure(case, bodies, options.rounds))
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
