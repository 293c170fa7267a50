"""How often guards fire on honest changes of real objects, and on cheats.

    python benchmarks/guards.py --meshes 'objects/**/*.obj' --out benchmarks/results/guards.json
    python benchmarks/guards.py                        the committed meshes
    python benchmarks/guards.py --every 4 ...          every fourth file

Honest changes are noise, decimation and voxels (`guard_changes.HONEST`); cheats are a plate under
the object and a flattened or stretched one. What stands on a plate of its own width already gains
nothing by another: `cheat` counts only objects whose own foot covers less than half of their
bounding rectangle for plates. Lines read `name.metric value`; shares are of objects.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.guard_changes import CHEATS, HONEST  # noqa: E402
from dso_jax.evaluation.guards import NAMES, check  # noqa: E402
from dso_jax.evaluation.shape import Shape, shape  # noqa: E402
from sim_mjx.bodies import BodyError  # noqa: E402
from sim_mjx.label import expand_paths  # noqa: E402
from sim_mjx.meshes import load_mesh  # noqa: E402

QUANTILES = (0.5, 0.9, 0.99, 1.0)
BROAD = 0.5  # of the bounding rectangle: a foot that a plate hardly widens

Found = dict[str, dict[str, tuple[float, bool]]]  # change -> guard -> value, fires


def measure(path: Path) -> tuple[str, float, Found]:
    """All changes of one file: its name, its own footprint, and what the guards say."""
    mesh = load_mesh(path)
    try:
        reference = shape(mesh)
    except BodyError:
        return path.stem, 0.0, {}
    changes = HONEST | {name: change for name, (change, _) in CHEATS.items()}
    found = {}
    for name, change in changes.items():
        said = check(_shape(change(mesh)), reference)
        found[name] = {guard: (one.value or 0.0, one.fires) for guard, one in said.items()}
    return path.stem, reference.footprint, found


def _shape(mesh) -> Shape | None:
    try:
        return shape(mesh)
    except BodyError:
        return None


def summarise(rows: list[tuple[str, float, Found]]) -> dict:
    """Quantiles and firing shares of every guard on honest pairs; what share of cheats is seen."""
    rows = [row for row in rows if row[2]]
    guards = {}
    for guard in NAMES:
        values = np.array([found[c][guard] for _, _, found in rows for c in HONEST], float)
        loud = [f"{name}/{c}" for name, _, found in rows for c in HONEST if found[c][guard][1]]
        guards[guard] = {
            "pairs": len(values),
            "fires": float(values[:, 1].mean()),
            "quantiles": dict(
                zip(map(str, QUANTILES), np.quantile(values[:, 0], QUANTILES), strict=True)
            ),
            "loud": loud,
        }
    any_of = [any(f for _, f in found[c].values()) for _, _, found in rows for c in HONEST]
    cheats = {}
    for name, (_, expected) in CHEATS.items():
        chosen = [row for row in rows if "plate" not in name or row[1] < BROAD]
        seen = [any(found[name][guard][1] for guard in expected) for _, _, found in chosen]
        missed = [one for (one, _, _), s in zip(chosen, seen, strict=True) if not s]
        cheats[name] = {"objects": len(seen), "seen": float(np.mean(seen)), "missed": missed}
    return {
        "objects": len(rows),
        "honest_fires": float(np.mean(any_of)),
        "guards": guards,
        "cheats": cheats,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--meshes", nargs="+", default=[str(ROOT / "tests/data/meshes")])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    paths = expand_paths(options.meshes)[:: options.every]
    if options.workers == 0:
        rows = [measure(path) for path in paths]
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(options.workers, context) as pool:
            rows = list(pool.map(measure, paths))
    result = summarise(rows)
    print(f"guards.objects {result['objects']}")
    print(f"guards.honest_fires {result['honest_fires']:.4f}")
    for name, one in result["guards"].items():
        print(f"{name}.fires {one['fires']:.4f}")
        print(f"{name}.p99 {one['quantiles']['0.99']:.3f}")
    for name, one in result["cheats"].items():
        print(f"cheat.{name.replace(' ', '_')}.seen {one['seen']:.4f}")
    if options.out:
        result["command"] = "python benchmarks/guards.py " + " ".join(argv or sys.argv[1:])
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
