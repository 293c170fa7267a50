"""The bodies that the physics benchmarks drop: of a folder of meshes, kept in one file.

    python benchmarks/real_bodies.py MESHES --out .dev/bodies.npz

The file also holds the tilt of each after ten seconds in C MuJoCo, so that labels made elsewhere
can be compared. Without such a file benchmarks take the committed meshes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sim_mjx import Protocol, RigidBody, referee  # noqa: E402
from sim_mjx.bodies import ARRAYS, POLYGON_ARRAYS, HullPolygons, Provenance  # noqa: E402
from sim_mjx.label import expand_paths  # noqa: E402
from sim_mjx.packed import by_layout  # noqa: E402
from sim_mjx.prepare import prepare  # noqa: E402

COMMITTED = ROOT / "tests" / "data" / "meshes"


def bodies_of(folder: Path) -> dict[int, RigidBody]:
    """Bodies of all mesh files under a folder, by the points of their bucket."""
    items = prepare(expand_paths([str(folder)]), Protocol())
    found = {g.points.shape[1]: g for _, g in by_layout(item.packed for item in items)}
    return dict(sorted(found.items()))


def save(bodies: dict[int, RigidBody], path: Path) -> None:
    """Writes them to one file."""
    arrays: dict[str, Any] = {}
    for points, group in bodies.items():
        table = group.polygons
        assert table is not None, "bodies of meshes have polygons"
        arrays |= {f"{points}/{name}": getattr(group, name) for name in ARRAYS}
        arrays |= {f"{points}/{name}": getattr(table, name) for name in POLYGON_ARRAYS}
        arrays[f"{points}/window"] = np.array(table.window)
        arrays[f"{points}/sha256"] = np.array([origin.sha256 for origin in group.provenance])
        arrays[f"{points}/c_tilt_deg"] = referee.drop(group, Protocol(early_stop=False)).tilt_deg
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def load(path: Path | None = None) -> dict[int, RigidBody]:
    """Bodies of such a file, or of the committed meshes, by the points of their bucket."""
    if path is None:
        return bodies_of(COMMITTED)
    found = {}
    with np.load(path) as arrays:
        for points in sorted({int(name.partition("/")[0]) for name in arrays}):
            table = HullPolygons(
                **{name: arrays[f"{points}/{name}"] for name in POLYGON_ARRAYS},
                window=int(arrays[f"{points}/window"]),
            )
            found[points] = RigidBody(
                **{name: arrays[f"{points}/{name}"] for name in ARRAYS},
                polygons=table,
                provenance=tuple(
                    Provenance(sha256=str(digest)) for digest in arrays[f"{points}/sha256"]
                ),
            )
    return found


def tilts(path: Path) -> dict[int, np.ndarray]:
    """Degrees after ten seconds in C, by bucket."""
    with np.load(path) as arrays:
        named = [name for name in arrays if name.endswith("/c_tilt_deg")]
        return {int(name.partition("/")[0]): arrays[name] for name in named}


def main() -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="mesh files")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bodies = bodies_of(options.folder)
    save(bodies, options.out)
    for points, group in bodies.items():
        print(f"{points} points: {len(group)} bodies")
    print(f"{options.out}: {options.out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
