"""A hundred thousand mixed mesh files with one in a hundred bad: every one must give its row.

    python benchmarks/garbage.py --files 100000 --folder /somewhere/with/200000/inodes
    python benchmarks/garbage.py --simulate --folder garbage --out benchmarks/results/garbage.json

The first only prepares bodies; with --simulate the files go through the whole labelling job. Its
folder is kept, and the same command goes on where it was killed. Good files are hard links to the
committed meshes, in every format; bad ones are hard links to one file of each kind of badness, so
that the folder takes some ten megabytes. Lines read `name.metric value`; the exit code is 1 if a
reason is not the one that was planted, or if a body or label holds anything that is not finite.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import platform
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import trimesh

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import garbage_job  # noqa: E402
from sim_mjx import Protocol, RigidBody  # noqa: E402
from sim_mjx.meshes import load_mesh  # noqa: E402
from sim_mjx.prepare import prepare  # noqa: E402

MESHES = ROOT / "tests" / "data" / "meshes"
# Raw units, so that millimetres taken for metres are found.
PROTOCOL = Protocol(scaling="none", inertia="exact")
FORMATS = ("obj", "glb", "stl", "ply", "off", "3mf", "dae")
BAD_SHARE = 0.01
PER_FOLDER = 1000


def good_files(folder: Path) -> list[Path]:
    """The committed meshes: as they are, and each in one more format."""
    made = []
    for index, path in enumerate(sorted(MESHES.glob("*.obj"))):
        kind = FORMATS[index % len(FORMATS)]
        copy = folder / f"{path.stem}.{kind}"
        mesh = load_mesh(path)
        if kind == "obj":
            copy.write_bytes(path.read_bytes())
        else:
            trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False).export(copy)
        twin = folder / f"{path.stem}-2.obj"
        twin.write_bytes(path.read_bytes())
        made += [copy, twin]
    return made


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """By what is wrong: a file, and the reason that its row must have."""
    cube = trimesh.creation.box()
    glb = cube.export(file_type="glb")
    text = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
    contents = {
        "empty.obj": (b"", "empty"),
        "no-faces.obj": (text, "empty"),
        "flat.obj": (text + b"v 1 1 0\nf 1 2 3\nf 2 5 3\n", "flat"),
        "nan.obj": (b"v nan 0 0\n" + text + b"f 1 2 3\nf 2 3 4\n", "nan_vertices"),
        "cut.glb": (glb[: len(glb) // 2], "not_a_mesh"),
        "cut.stl": (bytes(80) + struct.pack("<I", 1000) + bytes(777), "not_a_mesh"),
        "page.glb": (b"<html>404</html>", "not_a_mesh"),
        "many.obj": (text + b"f 1 2 3\n" * 2_000_000, "too_many_faces"),
        "photo.jpg": (b"\xff\xd8\xff", "unsupported"),
    }
    made = {}
    for name, (data, reason) in contents.items():
        (folder / name).write_bytes(data)
        made[name] = (folder / name, reason)
    millimetres = cube.copy()
    millimetres.apply_scale(1800)
    millimetres.export(folder / "millimetres.stl")
    made["millimetres.stl"] = (folder / "millimetres.stl", "scale")
    # A mesh for `legacy`; `exact` falls back to the hull, with a reason beside the label.
    fin = trimesh.Trimesh([[0, 0, 0.5], [0.5, 0, 0.5], [0, 0, 0.9]], [[0, 1, 2]])
    trimesh.util.concatenate([cube, cube, fin]).export(folder / "non-manifold.obj")
    made["non-manifold.obj"] = (folder / "non-manifold.obj", "")
    with zipfile.ZipFile(folder / "bomb.3mf", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", b"<model>" + b" " * (200 * 2**20))
    made["bomb.3mf"] = (folder / "bomb.3mf", "too_large")
    made["folder.glb"] = (folder / "folder.glb", "not_a_file")
    return made


def plant(folder: Path, count: int, seed: int = 0) -> list[tuple[Path, str, str]]:
    """Fills a folder with `count` files.

    Returns:
        Path, what is wrong (empty if nothing), and the reason that its row must have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder.with_name(f"{folder.name}.json")
    if listing.exists():
        return [(Path(path), fault, reason) for path, fault, reason in _read(listing)]
    kinds = folder / "kinds"
    kinds.mkdir()
    good, bad = good_files(kinds), bad_files(kinds)
    rng = random.Random(seed)
    planted = []
    for index in range(count):
        place = folder / f"{index // PER_FOLDER:04d}"
        place.mkdir(exist_ok=True)
        fault = rng.choice(sorted(bad)) if rng.random() < BAD_SHARE else ""
        source, reason = bad[fault] if fault else (rng.choice(good), "")
        path = place / f"{index:06d}{source.suffix}"
        if fault == "folder.glb":
            path.mkdir()
        else:
            os.link(source, path)
        planted.append((path, fault, reason))
    text = json.dumps([(str(path), fault, reason) for path, fault, reason in planted])
    listing.write_text(text, encoding="utf-8")
    return planted


def _read(listing: Path) -> list[tuple[str, str, str]]:
    return json.loads(listing.read_text(encoding="utf-8"))


def finite(body: RigidBody) -> bool:
    """Whether every number of a body can be simulated."""
    numbers = (body.points, body.mass, body.com, body.inertia, body.inertia_quat)
    return all(np.isfinite(part).all() for part in numbers) and bool((body.inertia > 0).all())


@dataclasses.dataclass
class Outcome:
    """What became of the planted files."""

    seconds: float = 0.0
    rows: int = 0
    bodies: int = 0
    fallbacks: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def run(planted: list[tuple[Path, str, str]], workers: int | None, cache: Path | None) -> Outcome:
    """Prepares all files and compares reasons with what was planted."""
    outcome = Outcome()
    began = time.perf_counter()
    rows = prepare((path for path, _, _ in planted), PROTOCOL, workers=workers, cache=cache)
    for row, (path, fault, reason) in zip(rows, planted, strict=True):
        outcome.rows += 1
        outcome.reasons[row.reason] += 1
        body = row.body
        if row.path != path or row.reason != reason or (body is None) != bool(reason):
            outcome.wrong.append(f"{path} ({fault or 'good'}): {row.reason!r}, not {reason!r}")
        if body is not None:
            outcome.bodies += 1
            outcome.fallbacks += body.provenance[0].fallback is not None
            if not finite(body):
                outcome.wrong.append(f"{path}: a body that is not finite")
    outcome.seconds = time.perf_counter() - began
    return outcome


def _peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="default: a temporary folder")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--no-cache", action="store_true")
    parser.add_argument("--simulate", action="store_true", help="the whole job; keeps --folder")
    parser.add_argument("--so-far", action="store_true", help="judge an unfinished --simulate")
    parser.add_argument("--out", type=Path, help="JSON file for what --simulate found")
    args = parser.parse_args()
    if args.simulate or args.so_far:
        return simulate(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        planted = plant(Path(place) / "files", args.files)
        before = _peak_mib()
        cache = None if args.no_cache else Path(place) / "cache"
        outcome = run(planted, args.workers, cache)
    print(f"garbage.files {outcome.rows}")
    print(f"garbage.seconds {outcome.seconds:.1f}")
    print(f"garbage.files_per_second {outcome.rows / outcome.seconds:.0f}")
    print(f"garbage.peak_mib_before {before:.0f}")
    print(f"garbage.peak_mib_after {_peak_mib():.0f}")
    print(f"garbage.bodies {outcome.bodies}")
    print(f"garbage.fallbacks {outcome.fallbacks}")
    for reason, count in sorted(outcome.reasons.items()):
        print(f"garbage.reason.{reason or 'none'} {count}")
    print(f"garbage.wrong {len(outcome.wrong)}")
    for line in outcome.wrong[:20]:
        print(line, file=sys.stderr)
    return 1 if outcome.wrong else 0


def simulate(args: argparse.Namespace) -> int:
    """The job with --simulate: labels, compares, prints and writes."""
    with contextlib.ExitStack() as stack:
        place = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        planted = plant(place / "files", args.files)
        cache, table = None if args.no_cache else place / "cache", place / "labels.parquet"
        paths = [path for path, _, _ in planted]
        runs = []
        if not args.so_far:
            record = garbage_job.run(paths, table, PROTOCOL, args.workers, cache)
            runs = garbage_job.remembered(place, record)
        report = {
            "command": " ".join(["python", "benchmarks/garbage.py", *sys.argv[1:]]),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "protocol": {"hash": PROTOCOL.hash(), **PROTOCOL.to_dict()},
            "runs": runs,
            **garbage_job.verdict(table, planted, so_far=args.so_far),
        }
    for name, value in report.items():
        if isinstance(value, int | float):
            print(f"garbage.{name} {value}")
    for reason, count in sorted(report["reasons"].items()):
        print(f"garbage.reason.{reason or 'none'} {count}")
    for line in report["wrong"][:20]:
        print(line, file=sys.stderr)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
