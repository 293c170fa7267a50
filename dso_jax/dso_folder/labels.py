"""The labels of DSO's data folder, read with their faults in mind.

    IMG_angles.npy        float64 (M, 1), degrees 0..360 of the image's M meshes in the order of
                          their names; only for images of which every sample became a mesh
    model_info.npz        image_ids and glb_ids int8 (N,), angles float16 (N, 1), in the order of
                          the meshes' names; only for objects with both labels
    available_images.npy  int64, the images with every sample and both labels; absent if none has

An angle is 2 acos w: yaw counts, and the pose after ten seconds need not be at rest. Stable means
below 20 degrees. int8 makes 128 into -128; float16 makes 19.993 and more into 20. What is written
(`sim_mjx.dso_outputs`) has neither fault.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dso_jax.dso_folder.layout import ObjectFiles
from dso_jax.errors import UsageError

STABLE_BELOW = 20.0  # degrees
_INFO = ("image_ids", "glb_ids", "angles")
# No table of an object comes near; a strange archive could unpack to more than the memory.
_LARGEST_BYTES = 64 * 2**20
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error)

Key = tuple[int, int]  # view, sample


class Label(NamedTuple):
    """The angle of one sample in degrees (NaN: the file says that there is none) and its file."""

    angle: float
    source: str  # "angles" or "model_info"


class Labels(NamedTuple):
    """The labels of one object, and what is wrong with its label files."""

    of: dict[Key, Label]
    problems: list[str]


def read_labels(files: ObjectFiles) -> Labels:
    """The labels of one object; an angles file (float64) goes before `model_info` (float16)."""
    problems: list[str] = []
    rough = _read_info(files, problems)
    labels = {key: Label(angle, "model_info") for key, angle in rough.items()}
    apart = []
    for view in sorted(files.angles):
        for key, angle in _read_angles(files, view, problems).items():
            labels[key] = Label(angle, "angles")
            if key in rough and not _same(angle, rough[key]):
                apart.append(f"{angle:g} and {rough[key]:g} for sample {key}")
    if apart:
        problems.append(
            f"{files.folder}: {len(apart)} angles in IMG_angles.npy and model_info.npz differ, "
            f"first {apart[0]}; IMG_angles.npy is used"
        )
    for key, (angle, source) in labels.items():
        if np.isinf(angle) or angle < 0 or angle > 360:
            problems.append(f"{files.folder}: angle {angle:g} of sample {key} is outside 0..360")
            labels[key] = Label(np.nan, source)
    return Labels(labels, problems)


def angles_of(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) the angle that tells DSO our label; NaN for samples without one.

    That is DSO's own angle, or the tilt if the label was made by that and yaw hides it.

    Args:
        samples: columns of a dataset's table.

    Raises:
        UsageError: a label fits neither, for example because the threshold was another one.
    """
    usable, stable = samples["status"] != "invalid", samples["stable"]
    rotation, tilt = samples["rotation_deg"], samples["tilt_deg"]
    fits = [~np.isnan(angle) & ((angle < STABLE_BELOW) == stable) for angle in (rotation, tilt)]
    wrong = np.flatnonzero(usable & ~fits[0] & ~fits[1])
    if len(wrong):
        first = {name: samples[name][wrong[0]] for name in ("object", "view", "sample", "stable")}
        text = ", ".join(f"{name} {value}" for name, value in first.items())
        raise UsageError(
            f"{len(wrong)} labels cannot be told by an angle and DSO's threshold of 20 degrees, "
            f"first {text} with rotation_deg {rotation[wrong[0]]:.2f}, tilt_deg "
            f"{tilt[wrong[0]]:.2f}; label the samples again with a threshold of 20"
        )
    return np.where(usable, np.where(fits[0], rotation, tilt), np.nan)


def _same(angle: float, rough: float) -> bool:
    """Whether a float16 angle is the rounded other one."""
    if np.isnan(angle) or np.isnan(rough):
        return bool(np.isnan(angle) and np.isnan(rough))
    return abs(angle - rough) <= np.spacing(np.float16(rough))


def _read_angles(files: ObjectFiles, view: int, problems: list[str]) -> dict[Key, float]:
    path = files.folder / f"{view:03d}_angles.npy"
    try:
        column = np.asarray(np.load(path, allow_pickle=False), np.float64)
    except _UNREADABLE as error:
        problems.append(f"{path}: cannot be read ({error})")
        return {}
    if column.ndim == 0 or column.size != len(column):
        problems.append(f"{path}: has shape {column.shape}, expected (M, 1)")
        return {}
    # Row j is the image's j-th mesh. Meshes may not have been kept; they had a latent each.
    meshes = [sample for of, sample in files.meshes if of == view]
    kept = meshes if files.meshes else [sample for of, sample in files.latents if of == view]
    # Otherwise row j is sample j: DSO's loader takes that for granted.
    numbers = kept if len(kept) == len(column) else range(len(column))
    lost = [sample for sample in meshes if sample not in numbers]
    if lost:
        problems.append(f"{path}: {len(column)} angles for {len(meshes)} meshes")
        return {}
    return {(view, n): float(a) for n, a in zip(numbers, column.reshape(-1), strict=True)}


def _read_info(files: ObjectFiles, problems: list[str]) -> dict[Key, float]:
    path = files.folder / "model_info.npz"
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            if sum(entry.file_size for entry in archive.zip.infolist()) > _LARGEST_BYTES:
                raise ValueError("far larger than any object's table")
            views, numbers, angles = (np.asarray(archive[name]) for name in _INFO)
    except (*_UNREADABLE, AttributeError) as error:  # a plain .npy under this name has no archive
        problems.append(f"{path}: cannot be read ({error})")
        return {}
    shapes_fit = views.shape == numbers.shape == (views.size,) and angles.size == views.size
    kinds_fit = views.dtype.kind in "iu" and numbers.dtype.kind in "iu" and angles.dtype.kind == "f"
    if not (shapes_fit and kinds_fit):
        found = ", ".join(
            f"{name} {value.dtype} {value.shape}"
            for name, value in zip(_INFO, (views, numbers, angles), strict=True)
        )
        problems.append(f"{path}: {found}; expected integers (N,), (N,) and floats (N, 1)")
        return {}
    keys = np.stack([views, numbers], axis=1).astype(np.int64)
    meshes = np.array(files.meshes, np.int64).reshape(-1, 2)
    if meshes.shape == keys.shape and not ((meshes - keys) % 256).any():
        keys = meshes  # row j is the j-th mesh, whatever became of its numbers
    elif (keys < 0).any():
        keys %= 256
    unique, copies = np.unique(keys, axis=0, return_counts=True)
    twice = {tuple(key) for key in unique[copies > 1].tolist()}
    if twice:
        problems.append(
            f"{path}: {len(twice)} samples are listed twice, first {min(twice)}: numbers above "
            "255 have overflowed int8, and without the GLB files nobody can tell which is which"
        )
    pairs = zip(keys.tolist(), angles.reshape(-1).tolist(), strict=True)
    return {(view, n): angle for (view, n), angle in pairs if (view, n) not in twice}
