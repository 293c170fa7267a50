"""What a dataset folder holds, in figures: read from its table and its file sizes alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from dso_jax.dataset.layout import NO_CONDITION, kinds, read_meta
from dso_jax.dataset.samples import read_table
from dso_jax.errors import UsageError

FALLEN = 20  # degrees from where an object counts as fallen
# Upper edges of the histogram.
EDGES = (1, 2, 5, 10, 15, 20, 25, 45, 90, 135, 180, 360)


@dataclasses.dataclass(frozen=True)
class Stats:
    """Figures of a dataset folder.

    Attributes:
        objects: of which `both` have stable and unstable samples, `only_stable` and
            `only_unstable` one kind, and `unlabelled` none with a label.
        views: images, over all objects.
        samples: of which `stable` and `unstable` are labelled, `moving` of the labelled were not at
            rest when the simulation ended, `invalid` have no label, and `without_condition` come
            from an image whose condition is not stored.
        usable_objects: with both labels and a condition: those that paired training draws from.
        usable_pairs: ways to choose a stable and an unstable sample of one of these objects.
        labelled_by: what was dropped, by which engine, under which protocol -> samples.
        angle: column of the histogram: tilt_deg, or rotation_deg where nobody recorded the tilt.
        histogram: upper edge in degrees -> labelled samples from the edge before up to it.
        bytes: kind of file -> bytes on disk.
        meta: contents of meta.json.
    """

    objects: int
    both: int
    only_stable: int
    only_unstable: int
    unlabelled: int
    views: int
    samples: int
    stable: int
    unstable: int
    moving: int
    invalid: int
    without_condition: int
    usable_objects: int
    usable_pairs: int
    labelled_by: dict[str, int]
    angle: str
    histogram: dict[int, int]
    bytes: dict[str, int]
    meta: dict


def measure(folder: Path) -> Stats:
    """The figures of a dataset folder.

    Raises:
        UsageError: there is no such folder, or its table or meta.json is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such dataset folder")
    meta = read_meta(folder)
    samples = read_table(folder)
    labelled = samples["status"] != "invalid"
    stable = samples["stable"] & labelled
    unstable = labelled & ~stable
    shown = samples["condition_row"] != NO_CONDITION
    names, member = np.unique(samples["object"], return_inverse=True)
    wins, losses, images = (
        np.bincount(member, weights=mask, minlength=len(names)).astype(int)
        for mask in (stable, unstable, shown)
    )
    usable = (wins > 0) & (losses > 0) & (images > 0)
    angle = "tilt_deg" if np.isfinite(samples["tilt_deg"][labelled]).any() else "rotation_deg"
    return Stats(
        objects=len(names),
        both=int(((wins > 0) & (losses > 0)).sum()),
        only_stable=int(((wins > 0) & (losses == 0)).sum()),
        only_unstable=int(((wins == 0) & (losses > 0)).sum()),
        unlabelled=int(((wins == 0) & (losses == 0)).sum()),
        views=np.unique(np.stack([member, samples["view"]]), axis=1).shape[1],
        samples=len(member),
        stable=int(stable.sum()),
        unstable=int(unstable.sum()),
        moving=int((samples["status"] == "moving").sum()),
        invalid=int((~labelled).sum()),
        without_condition=int((~shown).sum()),
        usable_objects=int(usable.sum()),
        usable_pairs=int((wins * losses)[usable].sum()),
        labelled_by=_labelled_by(samples),
        angle=angle,
        histogram=_histogram(samples[angle][labelled]),
        bytes=_bytes(folder, meta),
        meta=meta,
    )


def _labelled_by(samples: dict[str, np.ndarray]) -> dict[str, int]:
    columns = (samples[name].tolist() for name in ("source", "engine", "protocol"))
    counts = Counter(zip(*columns, strict=True))
    return {
        f"{source}, {engine}, protocol {protocol}": count
        for (source, engine, protocol), count in counts.most_common()
    }


def _histogram(angles: np.ndarray) -> dict[int, int]:
    """Samples with EDGES[i - 1] <= angle < EDGES[i]; an angle of 360 belongs to the last."""
    bins = np.searchsorted(EDGES, angles[np.isfinite(angles)], side="right")
    counts = np.bincount(np.minimum(bins, len(EDGES) - 1), minlength=len(EDGES))
    return dict(zip(EDGES, counts.tolist(), strict=True))


def _bytes(folder: Path, meta: dict) -> dict[str, int]:
    patterns = {**{kind: f"{kind}-*" for kind in kinds(meta)}, "table": "samples*.parquet"}
    return {
        kind: sum(path.stat().st_size for path in folder.glob(pattern))
        for kind, pattern in patterns.items()
    }
