"""What an import of DSO's data folder will do, from the names of its files and a few of them.

Which samples share a shard depends on names and sizes alone, so a resumed import cuts the folder
into the same shards as the one that was killed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dso_jax.dataset.shards import DTYPES
from dso_jax.dso_folder.layout import ORIGIN, BadFile, ObjectFiles, read_tensor
from dso_jax.dso_folder.rows import Origin, Sample
from dso_jax.errors import UsageError

SHARD_BYTES = 2**30  # of latents and conditions; a dataset of the paper's size gets 230 shards
_PROBES = 16  # readable files that vote on shape and type


class Layout(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def empty(self, rows: int) -> np.ndarray:
        return np.empty((rows, *self.shape), self.dtype)


class Group(NamedTuple):
    """The samples of one shard in the order of its rows, and its images in theirs."""

    samples: list[Sample]
    views: list[tuple[ObjectFiles, int]]


def find_layouts(source: Path, objects: list[ObjectFiles]) -> tuple[Layout, Layout]:
    """Shape and type of most latents and of most conditions."""
    latents = (files.latent(*key) for files in objects for key in files.latents)
    conditions = (files.condition(view) for files in objects for view in sorted(files.conditions))
    return (
        _layout(latents, 4, f"{source}: no IMG_sparse_sample_EEE.pt"),
        _layout(conditions, 2, f"{source}: no IMG_cond.pt"),
    )


def _layout(paths: Iterable[Path], dimensions: int, nothing: str) -> Layout:
    votes: Counter[Layout] = Counter()
    first = ""
    for path in paths:
        try:
            values = read_tensor(path)
        except BadFile as error:
            first = first or f" ({error})"
            continue
        if values.ndim == dimensions and values.dtype in DTYPES.values():
            votes[Layout(values.shape, values.dtype)] += 1
        if votes.total() == _PROBES:
            break
    if not votes:
        raise UsageError(f"{nothing} holds a {dimensions}-dimensional tensor of floats{first}")
    return votes.most_common(1)[0][0]


def plan(
    objects: list[ObjectFiles], origin: Origin | None, latent: Layout, condition: Layout
) -> Iterator[Group]:
    """Which samples share a shard: those of an exported dataset's shards, others by size."""
    left = {
        (files.name, view, number): Sample(files, view, number)
        for files in objects
        for view, number in files.latents
    }
    for members in origin.shards() if origin else ():
        there = [(left.pop(key), row) for key, row in members if key in left]
        there_by_condition = [sample for sample, _ in sorted(there, key=lambda pair: pair[1])]
        yield Group([sample for sample, _ in there], _views(there_by_condition))
    group: list[Sample] = []
    size = 0
    for _, part in itertools.groupby(left.values(), key=lambda sample: sample.key[:2]):
        samples = list(part)
        more = condition.bytes + len(samples) * latent.bytes
        if group and size + more > SHARD_BYTES:
            yield Group(group, _views(group))
            group, size = [], 0
        group, size = group + samples, size + more
    if group:
        yield Group(group, _views(group))


def _views(samples: list[Sample]) -> list[tuple[ObjectFiles, int]]:
    """The images of these samples that have a condition, each once, in order."""
    found = {
        sample.key[:2]: (sample.files, sample.view)
        for sample in samples
        if sample.view in sample.files.conditions
    }
    return list(found.values())


def missing_files(source: Path, objects: list[ObjectFiles], origin: Origin | None) -> Iterator[str]:
    """What the names alone show to be missing or misnamed."""
    present = set()
    for files in objects:
        present |= {(files.name, *key) for key in files.latents}
        for name in files.misnamed:
            yield f"{files.folder / name}: expected numbers of three digits; not imported"
        lost = sorted(set(files.meshes) - set(files.latents))
        if lost:
            first = files.latent(*lost[0]).name
            yield f"{files.folder}: {len(lost)} meshes have no latent, first {first}"
    members = itertools.chain.from_iterable(origin.shards() if origin else ())
    for (folder, view, number), _ in members:
        if (folder, view, number) not in present:
            name = f"{view:03d}_sparse_sample_{number:03d}.pt"
            yield f"{source / folder / name}: is gone, {ORIGIN}/samples.parquet lists it"
