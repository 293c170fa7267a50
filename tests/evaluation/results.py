"""Results of evaluations for the tests of the report: real meshes, made-up outcomes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from dso_jax.evaluation import judge, summary
from dso_jax.evaluation.result import Result
from sim_mjx import Protocol
from tests.sim import shapes

UPRIGHT = [0.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0]
ON_ITS_SIDE = [0.0, 0.0, 0.2, 0.5**0.5, 0.5**0.5, 0.0, 0.0]
NOTHING = [np.nan] * 7


def columns(paths: list[str], tilt: list[float], margin: list[float]) -> dict[str, np.ndarray]:
    """Those that both sides of a comparison have; a tilt that is NaN makes a mesh invalid."""
    tilts = np.array(tilt)
    invalid = np.isnan(tilts)
    return {
        "path": np.array(paths, object),
        "status": np.where(invalid, "invalid", "rest").astype(object),
        "reason": np.where(invalid, "not_a_mesh", "").astype(object),
        "stable": tilts < 20,
        "moving": np.zeros(len(tilts), bool),
        "tilt_deg": tilts,
        "rotation_deg": tilts,
        "margin_deg": np.where(invalid, np.nan, margin),
        "margin_mm": np.where(invalid, np.nan, np.array(margin) * 2),
    }


def poses(tilt: list[float]) -> np.ndarray:
    """Where objects with these tilts lie."""
    return np.array([NOTHING if np.isnan(t) else UPRIGHT if t < 20 else ON_ITS_SIDE for t in tilt])


def result(
    paths: list[Path],
    tilt: list[float],
    before: tuple[list[Path], list[float]] | None = None,
    objects: list[str] | None = None,
) -> Result:
    """An evaluation of these meshes with these tilts, and of other meshes before."""
    count = len(paths)
    margins = [5.0 + row % 30 for row in range(count)]
    protocol = Protocol.preset("dso-eval")
    found = {
        "object": np.array(objects or [path.stem for path in paths], object),
        "view": np.array(["000"] * count, object),
        "sample": np.arange(count),
        "category": np.array([f"kind {row % 3}" for row in range(count)], object),
        **columns([str(path) for path in paths], tilt, margins),
    }
    tables, before_poses = {"all": summary.table(found)}, None
    if before is not None:
        earlier = columns([str(path) for path in before[0]], before[1], margins)
        found |= {f"before_{name}": values for name, values in earlier.items()}
        tables |= {"before": summary.table(summary.before_columns(found))}
        tables |= {"change": summary.change(found)}
        before_poses = poses(before[1])
    tables["verdict"], found["guards"] = judge.judge(found)
    record = {
        "command": "dso evaluate a <b>",
        "device": "cpu",
        "seconds": 1.5,
        "protocol": {"hash": protocol.hash(), **protocol.to_dict()},
    }
    return Result(record, found, poses(tilt), tables, before_poses=before_poses)


def small(folder: Path) -> Result:
    """Six meshes in a folder, with every fate that a mesh can have."""
    names = [
        'odd & "quoted" #1.obj',
        "fixed.obj",
        "same.obj",
        "broken.obj",
        "no mesh.obj",
        "gone.obj",
    ]
    paths = [folder / "after" / name for name in names]
    paths[0].parent.mkdir(parents=True)
    for path in paths[:4]:
        shutil.copyfile(shapes.mesh_path("ammoBox"), path)
    paths[4].write_text("no mesh")
    earlier = [shapes.mesh_path("bread")] * 6
    tilt = [3.0, 1.0, 2.0, 90.0, np.nan, 4.0]
    return result(paths, tilt, (earlier, [1.0, 85.0, 2.0, 2.0, 1.0, 4.5]), ["<script>", *names[1:]])
