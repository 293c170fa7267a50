"""Labels as shipped against C MuJoCo over whole meshes for ten full seconds: every miss by name.

    python benchmarks/agreement.py --out benchmarks/results/agreement.json
    python benchmarks/agreement.py --quick                      a twentieth of everything
    python benchmarks/agreement.py --only jitter --only starts

Sets: the real meshes of --objects, the synthetic ones of `synthetic_meshes.py`, and its balanced
ones apart. Sections: `labels` (with and without re-adjudication of close calls), `jitter` (C
against itself with vertices moved by 1e-6: the floor below which no engine can agree), `starts`
(perturbed starts in the shipped step and in C), `occupancy` (bodies from 64^3 voxels of a mesh
against the mesh itself). Counted are labels outside 15-25 degrees in C, and not those on which two
versions of C differ. The exit code is 1 if an agreement is below its target.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import mujoco
import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import agreement_sets, agreement_starts, occupancy_labels, whole_mesh  # noqa: E402
from benchmarks.agreement_score import PROTOCOL, Labels, compare, families, share  # noqa: E402
from benchmarks.agreement_sets import MeshSet  # noqa: E402
from sim_mjx import engines, job  # noqa: E402
from sim_mjx.meshes import Mesh, load_mesh  # noqa: E402
from sim_mjx.plan import make_plan  # noqa: E402
from sim_mjx.task import Task  # noqa: E402

SECTIONS = ("labels", "jitter", "starts", "occupancy")
JITTER = 1e-6
QUICK_SHARE = 0.05
# Percent in each class of counted labels; where a class has fewer than SMALL, one miss is allowed.
TARGET, SMALL = 99.5, 200
TILT_TARGET_DEG = 0.1
# Percent of counted labels that bodies from voxels share with their mesh, and of falling ones.
VOXEL_TARGET, STILL_FALL_TARGET = 98.5, 80.0


def labelled(meshes: MeshSet, folder: Path, adjudicate: bool, workers: int | None) -> Labels:
    """The labels of `dso label` with its defaults, or with --no-adjudicate."""
    task = Task(PROTOCOL, engines.resolve("mjx"), adjudicate)
    out = folder / f"{meshes.name}-{adjudicate}.parquet"
    plan = make_plan(meshes.paths, task, out, overwrite=True)
    job.run(plan, task, out, workers=workers, cache=folder / "cache")
    columns = pq.read_table(out).to_pydict()

    def numbers(name: str) -> np.ndarray:
        return np.array([np.nan if x is None else x for x in columns[name]])

    return Labels(
        numbers("rotation_deg"),
        numbers("tilt_deg"),
        np.array([x is True for x in columns["stable"]]),
        np.array(columns["status"], dtype=object),
    )


def loaded(meshes: MeshSet) -> list[Mesh]:
    """The meshes of a set."""
    return [load_mesh(path) for path in meshes.paths]


def label_section(meshes: MeshSet, referee: Labels, folder: Path, workers) -> dict[str, Any]:
    """Both ways of labelling against C."""
    found: dict[str, Any] = {"meshes": len(meshes), "invalid": 0}
    for name, adjudicate in (("adjudicated", True), ("not_adjudicated", False)):
        ours = labelled(meshes, folder, adjudicate, workers)
        found[name] = compare(meshes, ours, referee)
        found["families"] = families(meshes, ours, referee) if adjudicate else found["families"]
        found["invalid"] = int((~ours.valid).sum())
    valid = referee.valid
    found["falling_percent"] = 100 * float((~referee.stable & valid).sum() / valid.sum())
    found["moving_in_c"] = int((referee.status == "moving").sum())
    if meshes.recorded is not None:
        found["c_against_recorded"] = {
            "same_label": share(referee.stable == (meshes.recorded < 20), valid),
            "largest_difference_deg": float(
                np.nanmax(np.abs(_unsigned(referee.rotation_deg) - meshes.recorded))
            ),
        }
    return found


def _unsigned(rotation_deg: np.ndarray) -> np.ndarray:
    """2 acos|w|, as the manifest has it."""
    return np.minimum(rotation_deg, 360 - rotation_deg)


def jitter_section(meshes: MeshSet, referee: Labels, repeats: int) -> dict[str, Any]:
    """C against itself with vertices moved by 1e-6: agreement of each repeat, and who flips."""
    given, runs, flips = loaded(meshes), [], np.zeros(len(meshes), int)
    for seed in range(repeats):
        again = Labels.of(whole_mesh.drop(given, jitter=JITTER, seed=seed))
        runs.append(compare(meshes, again, referee))
        flips += again.stable != referee.stable
    kept = ("standing", "falling", "everything", "everything_standing", "everything_falling")
    percents = {name: [run[name]["percent"] for run in runs] for name in kept}
    return {
        "jitter": JITTER,
        "repeats": repeats,
        "percent": percents,
        "mean_percent": {name: _mean(values) for name, values in percents.items()},
        "flips": {meshes.ids[i]: int(flips[i]) for i in np.flatnonzero(flips)},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def failures(report: dict[str, Any]) -> list[str]:
    """Which targets are missed; balanced meshes have none of their own."""
    failed = []
    for name, found in report["sets"].items():
        labels, floor = found.get("labels"), found.get("jitter")
        if labels is None or name == "balanced":
            continue
        shipped = labels["adjudicated"]
        for kind in ("standing", "falling"):
            count, agree = shipped[kind]["count"], shipped[kind]["agree"]
            if count - agree > (1 if count < SMALL else (1 - TARGET / 100) * count):
                failed.append(f"{name} {kind}: {agree} of {count}")
        if shipped["tilt_difference_deg_where_both_stand"]["p99"] > TILT_TARGET_DEG:
            failed.append(f"{name}: p99 of the tilt difference above {TILT_TARGET_DEG} degrees")
        everything = shipped["everything"]["percent"]
        if floor and everything < floor["mean_percent"]["everything"]:
            failed.append(f"{name}: over everything below C against itself")
    voxels = report["sets"].get("real", {}).get("occupancy")
    return failed + ([] if voxels is None else _voxel_failures(voxels))


def _voxel_failures(found: dict[str, Any]) -> list[str]:
    """Targets of bodies from voxels, which only real meshes have: synthetic ones stand on hairs."""
    classes = [found["against_our_label_of_the_mesh"][name] for name in ("standing", "falling")]
    agree, count = (sum(one[name] for one in classes) for name in ("agree", "count"))
    failed = []
    if agree < VOXEL_TARGET / 100 * count:
        failed.append(f"real, voxels: {agree} of {count}")
    if classes[1]["agree"] < STILL_FALL_TARGET / 100 * classes[1]["count"]:
        failed.append(f"real, voxels: {classes[1]['agree']} of {classes[1]['count']} still fall")
    return failed


def lines(report: dict[str, Any], prefix: str) -> list[str]:
    """`name.metric value` for every number; families and lists are left to the JSON."""
    found = []
    for key, value in report.items():
        if isinstance(value, dict) and set(value) == {"count", "agree", "percent"}:
            if value["count"]:
                found.append(
                    f"{prefix}.{key} {value['percent']:.2f} {value['agree']}/{value['count']}"
                )
        elif isinstance(value, dict) and key not in ("families", "flips", "record"):
            found += lines(value, f"{prefix}.{key}")
        elif isinstance(value, int | float):
            found.append(f"{prefix}.{key} {value:.6g}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--objects", type=Path, default=agreement_sets.default_objects())
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a section; repeatable")
    parser.add_argument("--sets", nargs="*", default=["real", "synthetic", "balanced"])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the meshes")
    parser.add_argument("--repeats", type=int, default=5, help="of the jittered run; default: 5")
    parser.add_argument("--starts", type=int, default=20, help="of each object; default: 20")
    parser.add_argument("--workers", type=int, help="processes that read files")
    parser.add_argument("--out", type=Path, help="JSON file; other sections in it are kept")
    args = parser.parse_args(argv)
    sections, size = args.only or SECTIONS, QUICK_SHARE if args.quick else 1.0
    report: dict[str, Any] = {"sets": {}}
    if args.out and args.out.exists():
        report = json.loads(args.out.read_text(encoding="utf-8"))
    referees = Referees()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sets = agreement_sets.synthetic(folder, size)
        if args.objects is not None:
            sets.insert(0, agreement_sets.real(args.objects, folder / "turned", size))
        for meshes in (one for one in sets if one.name in args.sets):
            found = report["sets"].setdefault(meshes.name, {})
            for section in sections:
                began = time.perf_counter()
                result = _section(section, meshes, folder, referees, args)
                if result is not None:
                    result["seconds"] = round(time.perf_counter() - began, 1)
                    result["record"] = _record(argv)
                    found[section] = result
                    print("\n".join(lines(result, f"{meshes.name}.{section}")), flush=True)
                    _write(report, args.out)
    for miss in failures(report):
        print(f"below target: {miss}", file=sys.stderr)
    return 1 if failures(report) else 0


def _section(section: str, meshes: MeshSet, folder: Path, referees: Referees, args):
    """What a section found for a set, or None where it has nothing to say."""
    if section == "labels":
        return label_section(meshes, referees(meshes), folder, args.workers)
    if section == "jitter":
        return jitter_section(meshes, referees(meshes), args.repeats)
    if section == "starts":
        return agreement_starts.section(meshes, args.starts, args.workers)
    if meshes.name == "balanced":  # which foot a grid gives a point is chance
        return None
    own = labelled(meshes, folder, True, args.workers)
    return occupancy_labels.section(meshes, referees(meshes), own)


class Referees:
    """C MuJoCo's labels, dropped once a set."""

    def __init__(self) -> None:
        self.known: dict[str, Labels] = {}

    def __call__(self, meshes: MeshSet) -> Labels:
        if meshes.name not in self.known:
            self.known[meshes.name] = Labels.of(whole_mesh.drop(loaded(meshes)))
        return self.known[meshes.name]


def _record(argv: Sequence[str] | None) -> dict[str, Any]:
    """What a section was run with."""
    arguments = sys.argv[1:] if argv is None else argv
    return {
        "command": " ".join(["python", "benchmarks/agreement.py", *arguments]),
        "engine": engines.resolve("mjx").record(),
        "protocol": PROTOCOL.hash(),
        "referee": f"mujoco {mujoco.__version__}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def _write(report: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
