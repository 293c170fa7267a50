"""Chamfer distance and F-score: pairs a second, beside DSO's way with open3d where that is here.

    python benchmarks/geometry.py                              780 pairs (65 objects x 12 views)
    python benchmarks/geometry.py --pairs 60 -f ours           fewer, ours alone
    python benchmarks/geometry.py --meshes 'meshes/**/*.glb'   truths of your own
    python benchmarks/geometry.py --fine                       100,000 samples a mesh

Each truth is compared with 12 changed copies of itself: turned by up to 10 degrees, stretched by up
to 15 % along each axis, noise of 1 % on every vertex. Cases, all over the same files:

  ours/N           dso_jax.evaluation.pairs with N worker processes
  open3d/serial    DSO's way: one pair after the other, ICP by open3d (with all its threads)
  scipy/serial     the same with every neighbour searched for by scipy

Distances of the same points are compared too (largest_relative_difference). open3d is not a
dependency (`pip install open3d`, or the smaller `open3d-cpu`); without it its case is left out.
Lines read `name.metric value`; times are wall seconds, and CPU seconds of all processes, which a
busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
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

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from dso_jax.evaluation import geometry
from dso_jax.evaluation.pairs import compare_files
from sim_mjx.label import expand_paths
from sim_mjx.meshes import load_mesh

VIEWS = 12
MESHES = pathlib.Path(__file__).resolve().parent.parent / "tests/data/meshes"
Pairs = list[tuple[pathlib.Path, pathlib.Path]]
Align = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make_pairs(truths: list[pathlib.Path], count: int, folder: pathlib.Path) -> Pairs:
    """Writes changed copies; truth after truth, as a run's folder is read."""
    pairs: Pairs = []
    for index in range(-(-count // VIEWS)):
        truth = truths[index % len(truths)]
        mesh = load_mesh(truth)
        for view in range(VIEWS):
            rng = np.random.default_rng([index, view])
            turn = trimesh.transformations.random_rotation_matrix(rng.random(3))[:3, 0]
            angle = np.radians(rng.uniform(-10, 10))
            rotation = trimesh.transformations.rotation_matrix(angle, turn)[:3, :3]
            vertices = mesh.vertices * rng.uniform(0.85, 1.15, 3) @ rotation.T
            vertices += 0.01 * np.ptp(vertices, axis=0).max() * rng.normal(size=vertices.shape)
            kind = "stl" if mesh.up == "z" else "obj"
            path = folder / f"{index:03}-{view:03}.{kind}"
            trimesh.Trimesh(vertices, mesh.triangles, process=False).export(path)
            pairs.append((path, truth))
    return pairs[:count]


def serial(pairs: Pairs, config: geometry.GeometryConfig, align: Align) -> list[float]:
    """DSO's evaluation: distances of one pair after the other, points in the order of drawing."""
    found = []
    for seed, (generated, truth) in enumerate(pairs):
        a, b = (plain_points(path, config.points, seed) for path in (generated, truth))
        found.append(plain_chamfer(align(a, b), b))
    return found


def plain_points(path: pathlib.Path, count: int, seed: int) -> np.ndarray:
    mesh = load_mesh(path)
    unit = geometry.unit_vertices(mesh.vertices)
    surface = trimesh.Trimesh(unit, mesh.triangles, process=False)
    return np.asarray(surface.sample(count, seed=seed))


def plain_chamfer(moved: np.ndarray, truth: np.ndarray) -> float:
    there, back = cKDTree(truth).query(moved)[0], cKDTree(moved).query(truth)[0]
    return float(there.mean() + back.mean()) / 2


def difference(pairs: Pairs, config: geometry.GeometryConfig, align: Align) -> float:
    """Largest relative difference of a distance to ours on the same points."""
    found = []
    for generated, truth in pairs:
        a = geometry.sample_generated(load_mesh(generated), config)
        b = geometry.sample_truth(load_mesh(truth), config)
        ours = geometry.measure(a, b, config).chamfer
        found.append(abs(plain_chamfer(align(a.points, b.points), b.points) / ours - 1))
    return max(found)


def open3d_align(config: geometry.GeometryConfig) -> Align:
    """ICP as DSO calls it."""
    import open3d  # type: ignore[import-not-found]

    icp = config.icp
    registration = open3d.pipelines.registration
    criteria = registration.ICPConvergenceCriteria(
        relative_fitness=icp.fitness_change,
        relative_rmse=icp.rmse_change,
        max_iteration=icp.iterations,
    )

    def align(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        clouds = [
            open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
            for points in (source, target)
        ]
        found = registration.registration_icp(
            *clouds,
            icp.reach,
            estimation_method=registration.TransformationEstimationPointToPoint(),
            criteria=criteria,
        )
        return np.asarray(clouds[0].transform(found.transformation).points)

    return align


def scipy_align(config: geometry.GeometryConfig) -> Align:
    """ICP with a search for every point in every iteration."""
    icp = config.icp

    def align(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        tree, before = cKDTree(target), (np.inf, np.inf)
        for update in range(icp.iterations + 1):
            distance, partner = tree.query(source, distance_upper_bound=icp.reach)
            near = distance < icp.reach
            rmse = float(np.sqrt((distance[near] ** 2).mean())) if near.any() else 0.0
            state = float(near.mean()), rmse
            if update == icp.iterations or not near.any() or _settled(state, before, icp):
                break
            before = state
            goal, middle = target[partner[near]].mean(axis=0), source[near].mean(axis=0)
            product = (target[partner[near]] - goal).T @ (source[near] - middle)
            left, _, right = np.linalg.svd(product)
            sign = [1.0, 1.0, np.linalg.det(left) * np.linalg.det(right)]
            source = (source - middle) @ ((left * sign) @ right).T + goal
        return source

    return align


def _settled(now: tuple[float, float], before: tuple[float, float], icp) -> bool:
    limits = icp.fitness_change, icp.rmse_change
    return all(abs(a - b) < limit for a, b, limit in zip(now, before, limits, strict=True))


def others(config: geometry.GeometryConfig) -> dict[str, Align]:
    """Ways to align that are compared with ours."""
    ways = {"scipy": scipy_align(config)}
    if importlib.util.find_spec("open3d"):
        ways["open3d"] = open3d_align(config)
    return ways


def cases(config: geometry.GeometryConfig) -> Iterator[tuple[str, Callable[[Pairs], list[float]]]]:
    """Name and function from pairs to distances."""

    def ours(workers: int) -> Callable[[Pairs], list[float]]:
        def run(pairs: Pairs) -> list[float]:
            rows = compare_files(pairs, config, workers=workers)
            return [row.geometry.chamfer if row.geometry else np.nan for row in rows]

        return run

    for workers in sorted({1, 2, os.cpu_count() or 1}):
        yield f"ours/{workers}", ours(workers)
    for name, align in others(config).items():
        yield f"{name}/serial", lambda pairs, align=align: serial(pairs, config, align)


def cpu_seconds() -> float:
    """Of this process and of those of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def main(argv: list[str] | None = None) -> None:
    """Runs the cases and prints or writes what they gave."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-f", "--filter", default="", help="regular expression on case names")
    parser.add_argument("--pairs", type=int, default=780, help="default: 780")
    parser.add_argument("--fine", action="store_true", help="the fine-grained measure")
    parser.add_argument("--meshes", nargs="*", default=[str(MESHES)], help="truths")
    parser.add_argument("--out", help="JSON file for the results")
    options = parser.parse_args(argv)
    config = geometry.FINE if options.fine else geometry.PAPER
    results: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/geometry.py", *(argv or sys.argv[1:])]),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "config": dataclasses.asdict(config),
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        truths = expand_paths(options.meshes)
        pairs = make_pairs(truths, options.pairs, pathlib.Path(folder))
        for name, run in cases(config):
            if not re.search(options.filter, name):
                continue
            run(pairs[:2])  # imports and first use
            started, spent = time.perf_counter(), cpu_seconds()
            found = run(pairs)
            seconds, cpu = time.perf_counter() - started, cpu_seconds() - spent
            numbers = {
                "pairs": len(pairs),
                "seconds": seconds,
                "milliseconds_a_pair": 1e3 * seconds / len(pairs),
                "cpu_milliseconds_a_pair": 1e3 * cpu / len(pairs),
                "mean_chamfer": float(np.mean(found)),
            }
            results["cases"][name] = numbers
            for metric, value in numbers.items():
                sys.stdout.write(f"{name}.{metric} {value}\n")
            sys.stdout.flush()
        done = results["cases"]
        for other, ours in itertools.product(done, done):
            if other.endswith("serial") and ours.startswith("ours"):
                done[other][f"time_of_{ours}"] = done[ours]["seconds"] / done[other]["seconds"]
                sys.stdout.write(f"{ours}.time_over_{other} {done[other][f'time_of_{ours}']:.3f}\n")
        for name, align in others(config).items():
            if f"{name}/serial" in done:
                # Every seventh, so that all objects have a part.
                apart = difference(pairs[::7][:100], config, align)
                done[f"{name}/serial"]["largest_relative_difference"] = apart
                sys.stdout.write(f"{name}/serial.largest_relative_difference {apart:.2e}\n")
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
