"""DSO's data folder into a dataset folder of ours, shard by shard.

Memory holds one shard twice, whatever the size of the folder. A shard is the unit of a resumed
import too: which samples go into which is decided from the file names before anything is read, so
a killed import that is started again ends with the same folder.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dso_jax.dataset.layout import NO_CONDITION
from dso_jax.dataset.shards import all_finite
from dso_jax.dataset.writer import DatasetWriter
from dso_jax.dso_folder.labels import read_labels
from dso_jax.dso_folder.layout import BadFile, find_objects, read_tensor
from dso_jax.dso_folder.plan import Group, Layout, find_layouts, missing_files, plan
from dso_jax.dso_folder.rows import META, Key, Origin, Sample, make_row, source_of, to_columns
from dso_jax.errors import UsageError

logger = logging.getLogger(__name__)

READERS = 8  # files in flight: a network disk needs them, a local one does not mind

Progress = Callable[[int, int], None]  # samples dealt with, and of how many


class Report(NamedTuple):
    """What an import did.

    Attributes:
        found: samples that the source lists.
        there: samples that an earlier run had imported.
        labels: where the labels of this run's samples come from -> how many.
        problems: files that are damaged, missing or at odds with each other, each by name.
    """

    found: int
    there: int
    labels: Counter[str]
    problems: list[str]


def import_folder(
    source: Path, out: Path, *, strict: bool = False, progress: Progress | None = None
) -> Report:
    """Reads the DSO data folder `source` into the dataset folder `out`, going on where it stopped.

    A sample is imported if its latent can be read. Without a label it is `invalid`, and without a
    condition it has none; both are kept. Every problem is logged as it is met.

    Args:
        strict: stop at the first shard with a problem, before it is written.
        progress: called with the number of samples dealt with so far, and of all.

    Raises:
        UsageError: the source has no readable latent or condition, the dataset folder was begun by
            something else, torch is not installed, or `strict` met a problem.
    """
    objects = find_objects(source)
    origin = Origin.read(source)
    layouts = find_layouts(source, objects)
    writer = DatasetWriter(out, META if origin is None else origin.meta)
    for key, layout in zip(("latent_shape", "condition_shape"), layouts, strict=True):
        if writer.meta.get(key, list(layout.shape)) != list(layout.shape):
            raise UsageError(f"{out}: {key} is {writer.meta[key]}, {source} has {layout.shape}")

    done = writer.keys
    problems = dict.fromkeys(missing_files(source, objects, origin))
    labels: Counter[str] = Counter()
    found, passed = sum(len(files.latents) for files in objects), 0

    def advance(count: int) -> None:
        nonlocal passed
        passed += count
        if progress and count:
            progress(passed, found)

    for problem in problems:
        logger.warning(problem)
    with ThreadPoolExecutor(READERS) as pool:
        for group in plan(objects, origin, *layouts):
            todo = [sample for sample in group.samples if _our_key(sample, origin) not in done]
            advance(len(group.samples) - len(todo))
            if todo:
                shard = _Shard(Group(todo, group.views), *layouts)
                for _ in shard.read(pool):
                    advance(1)
                for problem in shard.read_labels():
                    if problem not in problems:  # each shard of an object reads its labels
                        logger.warning(problem)
                        problems[problem] = None
                if strict and problems:
                    first = next(iter(problems))
                    raise UsageError(f"--strict: {first}; {len(writer)} samples were imported")
                labels += shard.write(writer, origin)
    writer.finish()
    if not len(writer):
        raise UsageError(f"{source}: nothing could be imported, first {next(iter(problems))}")
    return Report(found, len(done), labels, list(problems))


class _Shard:
    """A group while it is read."""

    def __init__(self, group: Group, latent: Layout, condition: Layout) -> None:
        needed = {(sample.files.name, sample.view) for sample in group.samples}
        self.views = [(files, view) for files, view in group.views if (files.name, view) in needed]
        self.samples = group.samples
        self.latents = latent.empty(len(self.samples))
        self.conditions = condition.empty(len(self.views))
        self.good = np.zeros(len(self.samples), bool)
        self.good_views = np.zeros(len(self.views), bool)
        self.problems: list[str] = []

    def read(self, pool: ThreadPoolExecutor) -> Iterator[None]:
        """Reads latents and conditions; yields after each latent."""
        jobs = []  # path, where its contents go, where it is noted that they are good
        unread = {(files.name, view): row for row, (files, view) in enumerate(self.views)}
        for row, sample in enumerate(self.samples):
            files, view, number = sample
            image = unread.pop((files.name, view), None)
            if image is not None:
                place = self.good_views, image
                jobs.append((files.condition(view), self.conditions[image], place))
            jobs.append((files.latent(view, number), self.latents[row], (self.good, row)))
        faults = pool.map(_fill, *zip(*(job[:2] for job in jobs), strict=True))
        for (_, _, (good, row)), fault in zip(jobs, faults, strict=True):
            good[row] = fault is None
            if fault is not None:
                self.problems.append(fault)
            if good is self.good:
                yield

    def read_labels(self) -> list[str]:
        """Reads the label files; returns all that is wrong with this shard's files."""
        objects = {sample.files.name: sample.files for sample in self.samples}
        read = {name: read_labels(files) for name, files in objects.items()}
        self.labels = {name: labels.of for name, labels in read.items()}
        return self.problems + [text for labels in read.values() for text in labels.problems]

    def write(self, writer: DatasetWriter, origin: Origin | None) -> Counter[str]:
        """Appends what could be read; returns where the labels come from."""
        rows, condition_rows, sources = [], [], Counter()
        numbers = np.where(self.good_views, np.cumsum(self.good_views) - 1, NO_CONDITION).tolist()
        condition_row = {
            (files.name, view): number
            for (files, view), number in zip(self.views, numbers, strict=True)
        }
        for sample in itertools.compress(self.samples, self.good):
            label = self.labels[sample.files.name].get((sample.view, sample.number))
            rows.append(make_row(sample, label, origin))
            condition_rows.append(condition_row.get((sample.files.name, sample.view), NO_CONDITION))
            sources[source_of(label)] += 1
        if rows:
            columns = {**to_columns(rows), "condition_row": np.array(condition_rows)}
            writer.append(
                columns, _kept(self.latents, self.good), _kept(self.conditions, self.good_views)
            )
        return sources


def _fill(path: Path, slot: np.ndarray) -> str | None:
    """Reads a tensor into its place in a shard; returns what is wrong with it."""
    try:
        values = read_tensor(path)
    except BadFile as error:
        return str(error)
    if (values.shape, values.dtype) != (slot.shape, slot.dtype):
        expected = f"{slot.dtype} {slot.shape} as in most files"
        return f"{path}: is {values.dtype} {values.shape}, expected {expected}"
    if not all_finite(values):
        return f"{path}: holds NaN or infinity"
    slot[...] = values
    return None


def _kept(rows: np.ndarray, good: np.ndarray) -> np.ndarray:
    return rows if good.all() else rows[good]


def _our_key(sample: Sample, origin: Origin | None) -> Key:
    folder, view, number = sample.key
    return (folder if origin is None else origin.name(folder)), view, number
