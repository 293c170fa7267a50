"""Files to a table, end to end: mjx against C with the same preparation, from files and cached.

    python benchmarks/end_to_end.py --files 12000 --out end_to_end.json
    python benchmarks/end_to_end.py --files 40                           does it run?

Files are GLBs of about 5,000 faces, made on all cores from the committed meshes, or the hulls of
--bodies: finer triangles, which leave the hull as it is, then stretched and sheared so that no two
are equal. Cases run `dso label`'s own job, programs compiled and processes started beforehand.
Cached ones of mjx take so little time that they get more files: the same by other names.
`mujoco-bound` is what C could reach at best, all cores preparing and stepping without a pause.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import os
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import trimesh  # noqa: E402

from benchmarks import c_processes, labels, real_bodies  # noqa: E402
from sim_mjx import Protocol, job  # noqa: E402
from sim_mjx.engines import resolve  # noqa: E402
from sim_mjx.label import expand_paths  # noqa: E402
from sim_mjx.meshes import load_mesh  # noqa: E402
from sim_mjx.packed import PackedBody, unpack  # noqa: E402
from sim_mjx.plan import make_plan  # noqa: E402
from sim_mjx.prepare import prepare  # noqa: E402
from sim_mjx.sizes import cores  # noqa: E402
from sim_mjx.task import Task  # noqa: E402

FACES = 5000
INWARD = 1e-4  # of the way to the middle


def make_files(folder: Path, count: int, bodies: Path | None = None) -> list[Path]:
    """That many GLBs, those that are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = _sources(bodies)
    paths = [folder / f"{k:06d}.glb" for k in range(count)]
    work: dict[tuple[Path, int | None], list[tuple[int, Path]]] = {}
    for k, path in enumerate(paths):
        if not path.exists():
            work.setdefault(sources[k % len(sources)], []).append((k, path))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(cores(), context) as pool:
        list(pool.map(_make, *zip(*work, strict=True), work.values()) if work else [])
    return paths


def _sources(bodies: Path | None) -> Sequence[tuple[Path, int | None]]:
    if bodies is None:
        return [(path, None) for path in sorted(real_bodies.COMMITTED.glob("*.obj"))]
    return [(bodies, row) for row in range(len(_hulls(bodies)))]


@functools.cache
def _hulls(bodies: Path) -> list[np.ndarray]:
    """Corners of every body of a file, z up."""
    groups = real_bodies.load(bodies).values()
    return [np.unique(points, axis=0) for group in groups for points in group.body_points()]


def _by_more_names(paths: list[Path], times: int) -> list[Path]:
    """The files, and links to them in a folder beside theirs."""
    links = paths[0].parent.with_name(f"{paths[0].parent.name}-links")
    links.mkdir(exist_ok=True)
    more = [links / f"{k}-{path.name}" for k in range(1, times) for path in paths]
    for link, path in zip(more, paths * (times - 1), strict=True):
        if not link.exists():
            os.link(path, link)
    return [*paths, *more]


def _make(source: Path, row: int | None, files: list[tuple[int, Path]]) -> None:
    if row is None:
        mesh = load_mesh(source)
        vertices, faces, up = mesh.vertices, mesh.triangles, mesh.up
    else:
        hull = trimesh.convex.convex_hull(_hulls(source)[row])
        vertices, faces, up = np.asarray(hull.vertices), np.asarray(hull.faces), "z"
    corners = len(vertices)
    while len(faces) < FACES:
        part = np.arange(min(len(faces), -(-(FACES - len(faces)) // 3)))
        vertices, faces = trimesh.remesh.subdivide(vertices, faces, face_index=part)[:2]
    # Points within a face or an edge, rounded, would be corners of the hull about as often as not.
    centre = vertices[:corners].mean(axis=0)
    vertices[corners:] += INWARD * (centre - vertices[corners:])
    vertices = vertices if up == "y" else vertices[:, [0, 2, 1]] * [1, 1, -1]
    for seed, path in files:
        random = np.random.default_rng(seed)
        matrix = np.diag(random.uniform(0.8, 1.25, 3))
        matrix[[0, 2], 1] = random.uniform(-0.08, 0.08, 2)  # leans a little; y is up
        path.write_bytes(glb(vertices @ matrix.T, faces))


def glb(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """A binary glTF of one mesh, positions and indices."""
    points, corners = vertices.astype("<f4"), faces.astype("<u4")
    views = [(points.tobytes(), 34962), (corners.tobytes(), 34963)]
    low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    head = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3"}
            | {"min": low, "max": high},
            {"bufferView": 1, "componentType": 5125, "count": corners.size, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(views[0][0]), "target": views[0][1]},
            {
                "buffer": 0,
                "byteOffset": len(views[0][0]),
                "byteLength": len(views[1][0]),
                "target": views[1][1],
            },
        ],
        "buffers": [{"byteLength": sum(len(data) for data, _ in views)}],
    }
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 4)
    data = b"".join(part for part, _ in views)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def label(
    paths: list[Path], engine: str, cache: Path | None, preparation: str = "host"
) -> dict[str, Any]:
    """One job, and the processor seconds of this process and of those that prepare.

    Processes that drop in C are in neither: they stay for the next job.
    """
    task = Task(Protocol(), resolve(engine), preparation=preparation)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        out, clock = Path(folder) / "labels.parquet", job.Clock()
        plan = make_plan(paths, task, out)
        usage = _usage()
        began = time.perf_counter()
        job.run(plan, task, out, cache=cache, clock=clock)
        seconds = time.perf_counter() - began
        own, children = (1e3 * (b - a) / len(paths) for a, b in zip(usage, _usage(), strict=True))
    return {
        "files": len(paths),
        "seconds": seconds,
        "files_per_second": len(paths) / seconds,
        "cpu_ms_a_file_in_this_process": own,
        "cpu_ms_a_file_in_workers": children,
        **dataclasses.asdict(clock),
    }


def _usage() -> tuple[float, float]:
    """Processor seconds of this process, and of those that it started and that have ended."""
    own, others = (resource.getrusage(k) for k in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime


def prepared(paths: list[Path], cache: Path | None) -> dict[str, Any]:
    """Bodies alone, no engine."""
    before, began = _usage(), time.perf_counter()
    layouts: collections.Counter[str] = collections.Counter()
    one_of: dict[str, PackedBody] = {}
    for item in prepare(paths, Protocol(), cache=cache):
        if item.packed is not None:
            layouts[item.packed.layout] += 1
            one_of[item.packed.layout] = item.packed
    seconds = time.perf_counter() - began
    own, children = (1e3 * (b - a) / len(paths) for a, b in zip(before, _usage(), strict=True))
    return {
        "files": len(paths),
        "bodies": layouts.total(),
        "buckets": {
            str(unpack([one_of[layout]]).points.shape[1]): n for layout, n in layouts.items()
        },
        "seconds": seconds,
        "files_per_second": len(paths) / seconds,
        "cpu_ms_a_file_in_this_process": own,
        "cpu_ms_a_file_in_workers": children,
    }


def bound(record: dict[str, Any], sample: dict[str, Any], kind: str) -> dict[str, Any]:
    """C on all cores without a pause: what a file's preparation and its steps cost a core."""
    ready = record[f"prepare/{kind}"]
    files = (
        1e3
        * cores()
        / (
            ready["cpu_ms_a_file_in_workers"]
            + 1e3 * sample["processes"] / sample["labels_per_second"]
        )
    )
    return {"files_per_second": files}


def main() -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=12_000)
    parser.add_argument("--cached", type=int, default=5, help="times as many for cached ones")
    parser.add_argument("--bodies", type=Path, help="file of real_bodies.py")
    parser.add_argument(
        "--folder", type=Path, help="where files are made and left, links beside it"
    )
    parser.add_argument("--limit", type=int, default=60, help="seconds a case may take")
    parser.add_argument("--device", action="store_true", help="--prepare device as well")
    parser.add_argument("--out", type=Path, help="JSON file; what it holds is not measured again")
    options = parser.parse_args()
    record = labels.Record(options.out, labels.about())
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "meshes"
        began = time.perf_counter()
        make_files(folder, options.files, options.bodies)
        print(f"{options.files} files in {time.perf_counter() - began:.1f} s", flush=True)
        paths = expand_paths([str(folder)])[: options.files]
        more, cache = _by_more_names(paths, options.cached), Path(temporary) / "cache"
        one = lambda *a, **k: lambda: label(*a, **k)  # noqa: E731
        one(paths[: len(_sources(options.bodies))], "mjx", None)()  # compiles for every bucket
        prepared(paths, cache)
        one(paths[:256], "mujoco", cache)()  # starts the processes
        run = [
            ("prepare/from-files", lambda: prepared(paths, None)),
            ("job/mjx/from-files", one(paths, "mjx", None)),
            ("prepare/from-cache", lambda: prepared(more, cache)),
            ("job/mjx/from-cache", one(more, "mjx", cache)),
            ("job/mujoco/from-cache", one(paths, "mujoco", cache)),
            ("job/mujoco/from-files", one(paths, "mujoco", None)),
            ("c-alone", lambda: c_processes.measure(min(8_000, 8 * len(paths)), options.bodies)),
        ]
        if options.device:
            run.append(("job/mjx/device", one(paths, "mjx", None, "device")))
        for name, call in run:
            record.measure(name, call, options.limit)
    found = record.cases
    for kind in ("from-files", "from-cache"):
        ours = found.get(f"job/mjx/{kind}")
        if ours is None:
            continue
        line = [f"{kind}: mjx {ours['files_per_second']:.0f} files/s"]
        if theirs := found.get(f"job/mujoco/{kind}"):
            ratio = ours["files_per_second"] / theirs["files_per_second"]
            line.append(f"engine mujoco {theirs['files_per_second']:.0f} ({ratio:.2f} x)")
        if "c-alone" in found and f"prepare/{kind}" in found:
            best = bound(found, found["c-alone"], kind)["files_per_second"]
            line.append(f"mujoco-bound {best:.0f} ({ours['files_per_second'] / best:.2f} x)")
        print(", ".join(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
