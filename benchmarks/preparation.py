"""Seconds from mesh files to bodies: where they go in one process, in a pool, from the cache.

    python benchmarks/preparation.py FOLDER --out benchmarks/results/preparation.json
    python benchmarks/preparation.py                    # a made-up mesh of 5,120 faces, and ours
    python benchmarks/preparation.py FOLDER --device    # mass and support points in JAX as well

Stages are medians over files of the best of some repeats, on one core; the pool and the cache are
timed over all files together, workers started beforehand. Lines read `name.metric value`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core is what is timed

import numpy as np
import trimesh

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sim_mjx import Protocol, mesh_files, meshes  # noqa: E402
from sim_mjx.bodies import Provenance  # noqa: E402
from sim_mjx.buckets import hull_body  # noqa: E402
from sim_mjx.hull import convex_hull  # noqa: E402
from sim_mjx.mass_properties import mass_properties  # noqa: E402
from sim_mjx.prepare import prepare  # noqa: E402

PROTOCOL = Protocol()
COMMITTED = ROOT / "tests" / "data" / "meshes"


def made_up(folder: Path) -> list[Path]:
    """Bumpy balls of 5,120 faces, as generators write them."""
    rng = np.random.default_rng(0)
    paths = []
    for kind in ("glb", "obj", "stl", "ply"):
        mesh = trimesh.creation.icosphere(4)
        mesh.vertices *= 1 + 0.1 * rng.normal(size=(len(mesh.vertices), 1))
        paths.append(folder / f"ball.{kind}")
        mesh.export(paths[-1])
    return paths


def stages(path: Path) -> dict[str, float]:
    """Milliseconds of each step from the file to the body."""
    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = call(*arguments)
        spent[name] = 1e3 * (time.perf_counter() - began)
        return result

    data = timed("read", path.read_bytes)
    timed("sha256", lambda: hashlib.sha256(data).hexdigest())
    triangles = timed("parse", mesh_files.read_triangles, path, data)
    mesh = meshes.Mesh(*timed("weld", meshes.weld, *triangles), up="y")
    vertices = timed("start", meshes.start_vertices, mesh, PROTOCOL)
    hull = timed("hull", convex_hull, vertices)
    mass = timed("mass", mass_properties, vertices, mesh.triangles, hull, PROTOCOL.inertia)
    timed("table", hull_body, hull, mass, PROTOCOL.density, Provenance())
    return {**spent, "total": sum(spent.values())}


def one_core(paths: list[Path], repeats: int) -> dict[str, float]:
    """Median over files of the best time of each stage, and the mean of the totals."""
    rows = []
    for path in paths:
        runs = [stages(path) for _ in range(repeats)]
        rows.append({name: min(run[name] for run in runs) for name in runs[0]})
    medians = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    return {**medians, "mean": float(np.mean([row["total"] for row in rows]))}


def all_cores(paths: list[Path], workers: int, cache: Path | None) -> dict[str, float]:
    """Files a second once the workers run: the first file is not counted."""
    rows = prepare([paths[0], *paths], PROTOCOL, workers=workers, cache=cache)
    next(rows)
    began = time.perf_counter()
    count = sum(1 for _ in rows)
    seconds = time.perf_counter() - began
    return {"files_per_second": count / seconds, "ms_per_file": 1e3 * seconds / count}


def on_device(paths: list[Path]) -> dict[str, float]:
    """Milliseconds a mesh for mass and support points, compiled beforehand; meshes are loaded."""
    from sim_mjx.device_bodies import bodies_on_device
    from sim_mjx.surfaces import surface_of

    surfaces = [surface_of(meshes.load_mesh(path), PROTOCOL) for path in paths]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        made = sum(len(index) for index, _ in bodies_on_device(surfaces, PROTOCOL))
        seconds.append(time.perf_counter() - began)
    return {"ms_per_mesh": 1e3 * min(seconds[1:]) / made, "first_seconds": seconds[0]}


def main() -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="mesh files; default: the committed")
    parser.add_argument("--every", type=int, default=1, help="take every n-th file for the stages")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = args.folder or COMMITTED
    paths = sorted(p for p in folder.rglob("*") if p.suffix[1:].lower() in mesh_files.UP_AXIS)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for path in made_up(Path(place)):
            figures[f"5k-{path.suffix[1:]}"] = one_core([path], 10 * args.repeats)
        figures["files"] = one_core(paths[:: args.every], args.repeats)
        figures["pool"] = all_cores(paths, args.workers, None)
        figures["pool-filling-cache"] = all_cores(paths, args.workers, Path(place) / "cache")
        figures["pool-from-cache"] = all_cores(paths, args.workers, Path(place) / "cache")
        figures["one-from-cache"] = all_cores(paths, 0, Path(place) / "cache")
    if args.device:
        figures["device"] = on_device(paths)
    for name, metrics in figures.items():
        for metric, value in metrics.items():
            print(f"{name}.{metric} {value:.3f}")
    if args.out:
        versions = {name: sys.modules[name].__version__ for name in ("numpy", "scipy", "trimesh")}
        record = {
            "command": " ".join(["benchmarks/preparation.py", *map(str, sys.argv[2:])]),
            "machine": {"cpu": platform.processor(), "workers": args.workers, **versions},
            "files": len(paths),
            "figures": figures,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
