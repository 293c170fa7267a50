"""DSO's own label files, from a table of labels.

In DSO's layout an object is a folder CATEGORY/OBJECT with meshes IMG_EEE.glb: image IMG, sample
EEE, three digits each. Its scripts leave beside them, and its trainer reads,

    model_info.npz        image_ids (N,), glb_ids (N,), angles float16 (N, 1): all samples
    IMG_angles.npy        float64 (M, 1): row e is sample e; of images that have a mesh of each
    available_images.npy  int64: those of them with both labels

where an image has as many samples as any of the dataset, and an angle is the total rotation
2 acos(w), 0..360 degrees, below the threshold if stable.

What differs from the reference, none of which its reader notices: a mesh that failed costs its own
row (NaN in IMG_angles.npy, absent from model_info.npz) and not the object; float16 angles are
rounded to the side of the threshold that they came from (19.999 is 19.98 there, not 20); ids above
127 are int16 instead of wrapping around.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, Float16, Int

from sim_mjx.label import write_whole
from sim_mjx.protocol import Protocol

_NAME = re.compile(r"(\d{3})_(\d{3})\.glb")


class OutputError(ValueError):
    """Labels that cannot be written in DSO's layout."""


class Sample(NamedTuple):
    """A labelled mesh of an object; the angle is NaN where it has no label."""

    image: int
    number: int
    angle: float


def check_names(paths: Iterable[pathlib.Path]) -> None:
    """Checks that all files are named as in DSO's layout.

    Raises:
        OutputError: naming the first that is not.
    """
    for path in paths:
        _parse(pathlib.Path(path))


def write(table: pathlib.Path, root: pathlib.Path, protocol: Protocol) -> int:
    """Writes the files of every object of a table of labels.

    Args:
        table: labels of meshes in DSO's layout.
        root: gets CATEGORY/OBJECT folders; those of the meshes if it is the root of the dataset.
        protocol: its threshold decides which images have both labels.

    Returns:
        How many objects were written.

    Raises:
        OutputError: a path is not in the layout, or a file cannot be written.
    """
    columns = pq.read_table(table, columns=["path", "rotation_deg"]).to_pydict()
    objects: dict[tuple[str, str], list[Sample]] = collections.defaultdict(list)
    for name, angle in zip(columns["path"], columns["rotation_deg"], strict=True):
        path = pathlib.Path(name)
        image, number = _parse(path)
        key = path.parent.parent.name, path.parent.name
        objects[key].append(Sample(image, number, np.nan if angle is None else angle))
    counts = (len(s) for group in objects.values() for s in _by_image(group).values())
    samples = max(counts, default=0)
    for (category, name), group in objects.items():
        folder = root / category / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_object(folder, sorted(group), samples, protocol.threshold_deg)
        except OSError as error:
            raise OutputError(f"{folder}: cannot write DSO's label files: {error}") from error
    return len(objects)


def float16_angles(angles: Float[np.ndarray, " N"], threshold: float) -> Float16[np.ndarray, " N"]:
    """The nearest half-precision angles that lie on the same side of the threshold."""
    half = angles.astype(np.float16)
    # The edge is compared as the reader does, in half precision.
    edge = np.float16(threshold)
    rounded_up = (angles < threshold) & (half >= edge)
    rounded_down = (angles >= threshold) & (half < edge)
    half[rounded_up] = np.nextafter(edge, np.float16(-np.inf))
    half[rounded_down] = edge
    return half


def write_object(
    folder: pathlib.Path, group: Sequence[Sample], samples: int, threshold: float
) -> None:
    """Writes the files of one object.

    Args:
        folder: of the object.
        group: its samples, sorted.
        samples: how many an image has if none is missing.
        threshold: degrees below which a sample is stable.

    Raises:
        OSError: a file cannot be written.
    """
    valid = [sample for sample in group if np.isfinite(sample.angle)]
    angles = np.array([sample.angle for sample in valid])
    if _both(angles, threshold):
        image_ids = _ids([sample.image for sample in valid])
        glb_ids = _ids([sample.number for sample in valid])
        half = float16_angles(angles, threshold)[:, None]
        _save(
            folder / "model_info.npz",
            lambda file: np.savez(file, image_ids=image_ids, glb_ids=glb_ids, angles=half),
        )
    else:
        (folder / "model_info.npz").unlink(missing_ok=True)
    available = []
    for image, members in _by_image(group).items():
        path = folder / f"{image:03d}_angles.npy"
        if [sample.number for sample in members] != list(range(samples)):
            path.unlink(missing_ok=True)  # rows are samples: one that has no mesh shifts the rest
            continue
        angles = np.array([[sample.angle] for sample in members])
        _save(path, lambda file, a=angles: np.save(file, a))
        if _both(angles, threshold):
            available.append(image)
    ids = np.array(available, np.int64)
    if available:
        _save(folder / "available_images.npy", lambda file: np.save(file, ids))
    else:
        (folder / "available_images.npy").unlink(missing_ok=True)


def _both(angles: np.ndarray, threshold: float) -> bool:
    """Whether there are stable and unstable samples; NaN is neither."""
    return bool((angles < threshold).any() and (angles >= threshold).any())


def _ids(values: Sequence[int]) -> Int[np.ndarray, " N"]:
    return np.array(values, np.int8 if max(values) < 128 else np.int16)


def _by_image(group: Sequence[Sample]) -> dict[int, list[Sample]]:
    images: dict[int, list[Sample]] = collections.defaultdict(list)
    for sample in group:
        images[sample.image].append(sample)
    return images


def _save(path: pathlib.Path, save: Callable) -> None:
    """Saves through an open file: given a name, numpy would add a suffix to it."""

    def write(part: pathlib.Path) -> None:
        with part.open("wb") as file:
            save(file)

    write_whole(path, write)


def _parse(path: pathlib.Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    if match is None or len(path.parts) < 3:
        raise OutputError(f"{path}: expected CATEGORY/OBJECT/IMG_EEE.glb for DSO's label files")
    return int(match[1]), int(match[2])
