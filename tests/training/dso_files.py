"""Data folders as DSO's two preprocessing scripts leave them, made with torch and numpy alone.

And what the tests of both directions share.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dso_jax.dataset.store import Dataset

LATENT, CONDITION = (2, 4, 4, 4), (3, 8)
# CATEGORY/OBJECT -> image -> angle of each sample. Three samples an image, or fewer if DSO failed.
OBJECTS = {
    "animal/cat": {0: [1.5, 35.0, 19.995], 1: [2.0, 3.0, 4.0]},
    "animal/dog": {0: [1.0, 2.0, 3.0]},  # only one label: no model_info.npz
    "chair/a-b_c": {0: [90.0, 0.25, 20.001], 2: [0.5, 350.25, 7.0], 3: [5.0, 25.0]},
}


def tensor(seed: int, shape: tuple[int, ...]):
    torch = pytest.importorskip("torch")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def make(root: Path, objects=OBJECTS, *, meshes: bool = True) -> Path:
    """Writes the folder; every latent and condition differs from every other."""
    torch = pytest.importorskip("torch")
    seed = 0
    for name, views in objects.items():
        folder = root / name
        folder.mkdir(parents=True)
        complete = max(len(angles) for angles in views.values())
        rows, available = [], []
        for view, angles in views.items():
            torch.save(tensor(seed := seed + 1, CONDITION), folder / f"{view:03d}_cond.pt")
            for sample, angle in enumerate(angles):
                latent = tensor(seed := seed + 1, LATENT)
                torch.save(latent, folder / f"{view:03d}_sparse_sample_{sample:03d}.pt")
                if meshes:
                    (folder / f"{view:03d}_{sample:03d}.glb").write_bytes(b"glTF")
                rows.append((view, sample, angle))
            if len(angles) == complete:
                np.save(folder / f"{view:03d}_angles.npy", np.array(angles)[:, None])
                if min(angles) < 20 <= max(angles):
                    available.append(view)
        info(folder, rows)
        if available:
            np.save(folder / "available_images.npy", np.array(available, dtype=int))
    return root


def info(folder: Path, rows: list[tuple[int, int, float]]) -> None:
    """Writes model_info.npz, if there are both labels."""
    views, numbers, angles = (np.array(column) for column in zip(*rows, strict=True))
    if angles.min() < 20 <= angles.max():
        np.savez(
            folder / "model_info.npz",
            image_ids=views.astype(np.int8),
            glb_ids=numbers.astype(np.int8),
            angles=angles[:, None].astype(np.float16),
        )


def rows(dataset: Dataset) -> dict[tuple, dict]:
    """Our lines by (object, view, sample)."""
    columns = {name: values.tolist() for name, values in dataset.samples.items()}
    keys = zip(columns["object"], columns["view"], columns["sample"], strict=True)
    return {
        key: {name: columns[name][i] for name in columns} | {"index": i}
        for i, key in enumerate(keys)
    }


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""
