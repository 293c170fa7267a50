"""Occupancy for the tests of meshes, and how labels of meshes compare with those of occupancy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh

from dso_jax import mesh_export, meshes
from sim_mjx import label
from sim_mjx.meshes import load_mesh, upright
from sim_mjx.protocol import Protocol
from sim_mjx.rest import Rest

CERTAIN = 8.0  # a logit of a decoder that was trained on voxels
BAND_DEG = (15.0, 25.0)  # tilts around the threshold, where a hair decides


def voxelised(path: Path, resolution: int, protocol: Protocol) -> np.ndarray:
    """Logits (R, R, R) of a mesh's surface voxels, as TRELLIS's decoder is trained to give them."""
    mesh = load_mesh(path)
    vertices = upright(mesh.vertices, mesh.up, protocol)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = (vertices - (low + high) / 2) * (0.95 / (high - low).max())
    points = trimesh.remesh.subdivide_to_size(
        vertices, mesh.triangles, max_edge=0.5 / resolution, max_iter=20
    )[0]
    occupied = np.zeros((resolution,) * 3, bool)
    occupied[tuple(np.floor((points + 0.5) * resolution).astype(int).T)] = True
    return np.where(occupied, CERTAIN, -CERTAIN).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of labels of exported meshes with those of the occupancy that they are from.

    Attributes:
      share: of the objects outside the band that have the same label.
      count: objects outside the band.
      fallen: of these, those that the occupancy's label says fall.
      watertight: of all.
    """

    share: float
    count: int
    fallen: int
    watertight: bool


def agreement(
    logits: Sequence[np.ndarray],
    rest: Rest,
    protocol: Protocol,
    folder: Path,
    *,
    suffix: str = "glb",
    engine: str = "mujoco",
) -> Agreement:
    """Exports every object, labels the files, and compares with `rest`."""
    usable = np.flatnonzero(rest.status != "invalid")
    files = [folder / f"{i:04d}.{suffix}" for i in usable]
    written = [
        mesh_export.export(
            meshes.surface(logits[int(i)], saturation=protocol.saturation), file, height_mm=100.0
        )
        for i, file in zip(usable, files, strict=True)
    ]
    table = label.label_files(files, protocol, engine=engine)
    assert set(table["status"].to_pylist()) <= {"rest", "moving"}
    tilt = np.stack([rest.tilt_deg[usable], table["tilt_deg"].to_numpy()])
    close = ((tilt > BAND_DEG[0]) & (tilt < BAND_DEG[1])).any(axis=0)
    stands = rest.stable(protocol)[usable]
    same = stands == table["stable"].to_numpy(zero_copy_only=False)
    return Agreement(
        share=float(same[~close].mean()),
        count=int((~close).sum()),
        fallen=int((~stands[~close]).sum()),
        watertight=all(one.watertight for one in written),
    )
