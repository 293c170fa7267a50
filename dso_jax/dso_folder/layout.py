"""DSO's own data folder: which files it has and what they are called.

    ROOT/CATEGORY/OBJECT/IMG_cond.pt                (S, D) bf16, condition of image IMG
                         IMG_sparse_sample_EEE.pt   (C, r, r, r) bf16, latent of its sample EEE
                         IMG_EEE.glb                the mesh that DSO made of it
                         model_info.npz, IMG_angles.npy, available_images.npy: `dso_folder.labels`

IMG and EEE have three digits. Our name of the object is CATEGORY/OBJECT, view is IMG, sample is
EEE. A condition is absent if DSO failed on the image's sample 0. Our exports add `dso-jax/`, a copy
of the dataset's table and meta.json, for what this layout has no place for; DSO does not look
there.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from dso_jax.errors import UsageError
from weight_port import WeightError, torch_files

ORIGIN = "dso-jax"  # folder in ROOT with the table and meta.json of an exported dataset
CATEGORY = "objects"  # where objects go whose names have no category
LARGEST_NUMBER = 999  # three digits

_CONDITION = re.compile(r"(\d{3})_cond\.pt")
_LATENT = re.compile(r"(\d{3})_sparse_sample_(\d{3})\.pt")
_MESH = re.compile(r"(\d{3})_(\d{3})\.glb")
_ANGLES = re.compile(r"(\d{3})_angles\.npy")
_MEANT = re.compile(r"[^.].*(_cond|_sparse_sample_[^.]*)\.pt")  # so named, with other numbers


@dataclasses.dataclass(frozen=True)
class ObjectFiles:
    """What the folder of one object lists; nothing has been read yet.

    Attributes:
        name: CATEGORY/OBJECT.
        folder: where the files are.
        latents: sorted (view, sample) of the latents.
        conditions: views with a condition.
        meshes: sorted (view, sample) of the GLB files.
        angles: views with an angles file.
        misnamed: latents and conditions whose numbers are not three digits.
    """

    name: str
    folder: Path
    latents: tuple[tuple[int, int], ...]
    conditions: frozenset[int]
    meshes: tuple[tuple[int, int], ...]
    angles: frozenset[int]
    misnamed: tuple[str, ...]

    def latent(self, view: int, sample: int) -> Path:
        return self.folder / f"{view:03d}_sparse_sample_{sample:03d}.pt"

    def condition(self, view: int) -> Path:
        return self.folder / f"{view:03d}_cond.pt"


def find_objects(root: Path) -> list[ObjectFiles]:
    """Every object of a DSO data folder that has a latent, by name.

    Raises:
        UsageError: there is none, and the message says if `root` is a folder too low; or a folder
            cannot be listed.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    found = []
    try:
        for category in _folders(root):
            if category.name != ORIGIN:
                listed = (list_object(category.name, folder) for folder in _folders(category))
                found += [files for files in listed if files.latents]
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be listed ({error.strerror})") from error
    if not found:
        below = "IMG_sparse_sample_EEE.pt"
        hint = ""
        if any(root.glob("*_sparse_sample_*.pt")):
            hint = "; this is the folder of one object: give the folder two above it"
        elif any(root.glob("*/*_sparse_sample_*.pt")):
            hint = "; this is a CATEGORY folder: give the folder above it"
        raise UsageError(f"{root}: no CATEGORY/OBJECT/{below} in it{hint}")
    return found


def list_object(category: str, folder: Path) -> ObjectFiles:
    """Lists the folder of one object."""
    names = sorted(os.listdir(folder))
    known = [name for name in names if _LATENT.fullmatch(name) or _CONDITION.fullmatch(name)]
    return ObjectFiles(
        name=f"{category}/{folder.name}",
        folder=folder,
        latents=_pairs(_LATENT, names),
        conditions=_singles(_CONDITION, names),
        meshes=_pairs(_MESH, names),
        angles=_singles(_ANGLES, names),
        misnamed=tuple(n for n in names if _MEANT.fullmatch(n) and n not in known),
    )


def folder_name(name: str) -> str:
    """CATEGORY/OBJECT for an object of ours.

    Raises:
        UsageError: the name cannot be a folder in a folder.
    """
    path = name if "/" in name else f"{CATEGORY}/{name}"
    parts = path.split("/")
    plain = all(re.fullmatch(r"[^.\x00-\x1f\\][^\x00-\x1f\\]*", part) for part in parts)
    if len(parts) != 2 or not plain or parts[0] == ORIGIN:
        raise UsageError(f"object {name!r}: cannot be a folder CATEGORY/OBJECT of DSO's layout")
    return path


def object_rows(folder: Path, samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CATEGORY/OBJECT -> rows of its samples in a dataset's table, by view and sample.

    Args:
        folder: of the dataset, for messages.
        samples: columns of its table.

    Raises:
        UsageError: a name that cannot be a folder, two that would share one, or a view or sample
            beyond three digits.
    """
    for column in ("view", "sample"):
        values = samples[column]
        if values.min() < 0 or values.max() > LARGEST_NUMBER:
            raise UsageError(
                f"{folder}: {column} {values.min()}..{values.max()}, but DSO's file names have "
                f"three digits: 0..{LARGEST_NUMBER}"
            )
    order = np.lexsort((samples["sample"], samples["view"], samples["object"]))
    names, first = np.unique(samples["object"][order], return_index=True)
    found: dict[str, np.ndarray] = {}
    for name, rows in zip(names.tolist(), np.split(order, first[1:]), strict=True):
        place = folder_name(name)
        if place in found:
            raise UsageError(
                f"{folder}: {name!r} and another object would share the folder {place}"
            )
        found[place] = rows
    return found


class BadFile(ValueError):
    """A file whose contents cannot be used; the message begins with its path."""


def read_tensor(path: Path) -> np.ndarray:
    """The tensor in a `.pt` file, read without running anything that is in it.

    Raises:
        UsageError: torch is not installed.
        BadFile: the file is damaged or holds something else.
    """
    try:
        return torch_files.read_tensor(path)
    except torch_files.TorchMissing as error:
        raise UsageError(str(error)) from error
    except WeightError as error:
        raise BadFile(str(error)) from error
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror})") from error


def write_tensor(path: Path, values: np.ndarray) -> None:
    """Writes a `.pt` file as DSO does: one bf16 tensor.

    Raises:
        UsageError: torch is not installed.
    """
    try:
        torch_files.write_tensor(path, values.astype(ml_dtypes.bfloat16))
    except torch_files.TorchMissing as error:
        raise UsageError(str(error)) from error


def _pairs(pattern: re.Pattern, names: list[str]) -> tuple[tuple[int, int], ...]:
    matches = (pattern.fullmatch(name) for name in names)
    return tuple((int(match[1]), int(match[2])) for match in matches if match)


def _singles(pattern: re.Pattern, names: list[str]) -> frozenset[int]:
    matches = (pattern.fullmatch(name) for name in names)
    return frozenset(int(match[1]) for match in matches if match)


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    return [folder / name for name in sorted(names)]
