"""Occupied voxels of a dataset's samples, for a second stage that runs elsewhere.

    FOLDER/coords.json             what they are from: format, generator, resolution
    FOLDER/CATEGORY/OBJECT.npz     the samples of one object, arrays by name:
        views, samples, seeds      (n,) which image, which draw of it, the seed of its noise
        starts                     (n + 1,) sample i has coords[starts[i]:starts[i + 1]]
        coords                     (voxels, 3) unsigned: x, y, z of occupied voxels, in that order
        condition_views            (m,) the images whose condition is there
        conditions                 (m, S, D) floats, or uint16: the bits of bfloat16; of a dataset
                                   that stores them (m, E, E, 3) uint8: the prepared pictures

numpy alone reads these; `scripts/trellis_stage2.py` makes meshes of them. An object's file appears
whole or not at all, and is not written again unless the object has other samples now.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from dso_jax.atomic import write_atomic, write_text
from dso_jax.dataset.store import Dataset
from dso_jax.dso_folder.layout import object_rows
from dso_jax.errors import UsageError
from dso_jax.generation import batches
from dso_jax.models import DecoderConfig, apply_decoder

FORMAT = "dso-jax-coords-1"
RECORD = "coords.json"
_TOGETHER = 64  # samples that are decoded before anything is written
_SAME = {"views": "view", "samples": "sample", "seeds": "seed"}  # array -> column of the table

Decode = Callable[[Float[np.ndarray, "N C r r r"]], Bool[np.ndarray, "N R R R"]]
Progress = Callable[[int, int], None]  # samples dealt with, and of how many


@dataclasses.dataclass(frozen=True)
class Exported:
    """What a folder of coordinates holds.

    Attributes:
      objects: its files.
      samples: in them.
      empty: samples without an occupied voxel, of which there is no mesh.
      unconditioned: samples of images without a condition, which a second stage cannot use.
    """

    objects: int
    samples: int
    empty: int
    unconditioned: int


def decoder(
    config: DecoderConfig, params: Mapping, *, batch: int = 16, dtype: str = "float32"
) -> Decode:
    """Latents -> occupancy by a generator's structure decoder, `batch` at a time in `dtype`."""
    occupied = jax.jit(lambda params, z: apply_decoder(config, params, z, dtype=dtype)[:, 0] > 0)

    def decode(latents: Float[np.ndarray, "N C r r r"]) -> Bool[np.ndarray, "N R R R"]:
        rows = np.asarray(latents, np.float32)
        return batches.run(lambda z: occupied(params, z), rows, size=batch)

    return decode


def export_coords(
    dataset: Dataset,
    out: Path,
    decode: Decode,
    *,
    origin: Mapping[str, Any],
    progress: Progress | None = None,
) -> Exported:
    """Writes the occupied voxels of all samples of a dataset, going on where it stopped.

    Args:
      decode: the generator's structure decoder.
      origin: which generator that is, JSON values; a folder has one.
      progress: called with the number of samples dealt with so far, and of all.

    Raises:
      UsageError: a name or number that DSO's layout cannot hold, or a folder with other contents.
    """
    objects = object_rows(dataset.folder, dataset.samples)
    _begin(out, origin)
    passed, empty, lacking = 0, 0, 0
    for names in _together(objects):
        files = {name: out / f"{name}.npz" for name in names}
        todo = [name for name in names if not _is_there(files[name], dataset, objects[name])]
        if todo:
            rows = [int(row) for name in todo for row in objects[name]]
            occupied = iter(decode(np.stack([dataset.latent(row) for row in rows])))
            for name in todo:
                _write(files[name], _contents(dataset, objects[name], occupied))
        for name in names:
            with np.load(files[name]) as file:
                empty += int((np.diff(file["starts"]) == 0).sum())
                lacking += int((~np.isin(file["views"], file["condition_views"])).sum())
            passed += len(objects[name])
            if progress:
                progress(passed, len(dataset))
    return Exported(len(objects), len(dataset), empty, lacking)


def _together(objects: Mapping[str, np.ndarray]) -> Iterator[list[str]]:
    """Objects in groups of about `_TOGETHER` samples."""
    group: list[str] = []
    count = 0
    for name, rows in objects.items():
        group.append(name)
        count += len(rows)
        if count >= _TOGETHER:
            yield group
            group, count = [], 0
    if group:
        yield group


def _is_there(path: Path, dataset: Dataset, rows: np.ndarray) -> bool:
    """Whether a file holds exactly these samples, by what names them."""
    try:
        with np.load(path) as file:
            return all(
                np.array_equal(file[name], dataset.samples[column][rows])
                for name, column in _SAME.items()
            )
    except FileNotFoundError:
        return False
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: no file of an export ({error}); remove it") from error


def _contents(
    dataset: Dataset, rows: np.ndarray, occupied: Iterator[Bool[np.ndarray, "R R R"]]
) -> dict[str, np.ndarray]:
    """The arrays of one object's file; takes its samples from `occupied`."""
    voxels = [np.argwhere(next(occupied)).astype(np.uint16) for _ in rows]
    shown = {int(dataset.samples["view"][row]): row for row in rows if dataset.has_condition[row]}
    conditions = [dataset.condition(int(row)) for row in shown.values()]
    return {
        **{name: dataset.samples[column][rows] for name, column in _SAME.items()},
        "starts": np.cumsum([0, *map(len, voxels)]),
        "coords": np.concatenate(voxels),
        "condition_views": np.array(list(shown), np.int64),
        "conditions": _plain(np.stack(conditions)) if conditions else np.zeros((0, 0, 0), "f4"),
    }


def _plain(values: np.ndarray) -> np.ndarray:
    """numpy has no bfloat16, and a file of it could be read by nobody else."""
    return values.view(np.uint16) if values.dtype.name == "bfloat16" else values


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)

    def save(part: Path) -> None:
        with part.open("wb") as file:  # given a name, numpy would add a suffix to it
            np.savez(file, **arrays)

    write_atomic(path, save)


def _begin(out: Path, origin: Mapping[str, Any]) -> None:
    """Makes the folder with its record, or checks that it has this very one."""
    record = json.loads(json.dumps({"format": FORMAT, **origin}))
    path = out / RECORD
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read ({error})") from error
        if found != record:
            differing = [key for key in record if found.get(key) != record[key]]
            key = differing[0] if differing else "another entry"
            raise UsageError(
                f"{path}: {key} is {found.get(key)!r}, this export has {record.get(key)!r}; give a "
                "new folder"
            )
        return
    try:
        if out.exists() and any(out.iterdir()):
            raise UsageError(f"{out}: is not empty, and no export of ours; give a new folder")
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror})") from error
