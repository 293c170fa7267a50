"""The meshes whose labels are compared: 597 real ones, and synthetic ones in two groups."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import synthetic_meshes
from sim_mjx.meshes import load_mesh

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class MeshSet:
    """Mesh files with names.

    Attributes:
        name: of the set.
        ids: of the meshes.
        families: of the meshes.
        paths: files, upright as their format has it.
        recorded: rotation in degrees that C MuJoCo 4.0.0 left elsewhere, where known.
        split: whether two versions of C MuJoCo label the mesh differently.
    """

    name: str
    ids: list[str]
    families: list[str]
    paths: list[Path]
    recorded: np.ndarray | None
    split: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def real(objects: Path, folder: Path, share: float = 1.0) -> MeshSet:
    """The meshes of a manifest, every n-th of them for a share below 1.

    Args:
        objects: folder with `manifest.json`, see its README.
        folder: for copies of the few meshes that the manifest turns before they are dropped.
        share: of the meshes.
    """
    entries = json.loads((objects / "manifest.json").read_text(encoding="utf-8"))
    entries = entries[:: max(1, round(1 / share))]
    recorded = np.array([entry["tilt_mj400"] for entry in entries])
    older = np.array([np.nan if e["tilt_mj330"] is None else e["tilt_mj330"] for e in entries])
    return MeshSet(
        "real",
        [entry["id"] for entry in entries],
        [entry["id"].split("/")[0] for entry in entries],
        [_upright(objects / e["mesh"], e.get("rot"), folder, i) for i, e in enumerate(entries)],
        recorded,
        ~np.isnan(older) & ((older < 20) != (recorded < 20)),
    )


def synthetic(folder: Path, share: float = 1.0) -> list[MeshSet]:
    """The families of the test set, and the balanced ones apart."""
    groups = {"synthetic": synthetic_meshes.FAMILIES, "balanced": synthetic_meshes.BALANCED}
    sets = []
    for name, families in groups.items():
        paths = synthetic_meshes.write(folder / name, families, share)
        ids = [path.stem for path in paths]
        kinds = [name.rpartition("-")[0] for name in ids]
        sets.append(MeshSet(name, ids, kinds, paths, None, np.zeros(len(ids), bool)))
    return sets


def default_objects() -> Path | None:
    """The folder of real meshes in or beside the checkout, or in `$DSO_JAX_DATA`."""
    data = os.environ.get("DSO_JAX_DATA")
    places = [ROOT / "shared/data", ROOT.parent / "shared/data"] + ([Path(data)] if data else [])
    found = [place / "objects" for place in places if (place / "objects/manifest.json").exists()]
    return found[-1] if found else None


def _upright(path: Path, rotation: str | Sequence[float] | None, folder: Path, index: int) -> Path:
    """The file, or a turned copy of it."""
    if not rotation:
        return path
    if isinstance(rotation, str):
        rotation = [float(number) for number in rotation.strip("[]").replace(",", " ").split()]
    mesh = load_mesh(path)
    vertices = mesh.vertices @ np.reshape(rotation, (3, 3)).T
    lines = [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in vertices]
    lines += [f"f {a} {b} {c}" for a, b, c in mesh.triangles + 1]
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{index:03d}-{path.name}"
    copy.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return copy
