"""Preference data: which samples a training step sees, as a pure function of position and seed.

Paired: objects that have both labels, in an order shuffled anew every epoch; then one of the
object's stable and one of its unstable samples, and one of its images as the condition, each
uniform (spec of the reference: winner, loser and condition may come from different views).
Unpaired: single samples over the dataset's own label mix (Eq. 5 of the paper).

Batch k holds examples k B .. (k + 1) B - 1 in this order whatever the number of processes, of which
each reads one piece; so a run can resume on another number of hosts, and its position is one
integer.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeVar

import grain
import numpy as np

from dso_jax.dataset.store import Dataset
from dso_jax.errors import UsageError
from sim_mjx.sizes import cores

T = TypeVar("T")
THREADS = min(8, cores())  # that read; a batch of the paper's size is 48 reads of 3 MB
AHEAD = 2  # batches that each of them may have ready


class Pair(NamedTuple):
    """Indices of samples in the dataset."""

    winner: int
    loser: int
    condition: int  # a sample made from the image to condition on


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What one object offers: indices of its stable and unstable samples, one sample an image."""

    name: str
    stable: np.ndarray
    unstable: np.ndarray
    views: np.ndarray


def candidates(dataset: Dataset) -> list[Candidates]:
    """The objects that have both labels and a condition, ordered by name.

    Raises:
        UsageError: no object has; the message counts what there is instead.
    """
    samples = dataset.samples
    names, member = np.unique(samples["object"], return_inverse=True)
    order = np.argsort(member, kind="stable")
    groups = np.split(order, np.searchsorted(member[order], np.arange(1, len(names))))
    found, only_stable, only_unstable = [], 0, 0
    for name, group in zip(names.tolist(), groups, strict=True):
        labelled = group[dataset.usable[group]]
        is_stable = samples["stable"][labelled]
        only_stable += bool(is_stable.any() and is_stable.all())
        only_unstable += bool(len(labelled) and not is_stable.any())
        seen = group[dataset.has_condition[group]]
        if is_stable.any() and not is_stable.all() and len(seen):
            first = np.unique(samples["view"][seen], return_index=True)[1]
            found.append(
                Candidates(name, labelled[is_stable], labelled[~is_stable], seen[np.sort(first)])
            )
    if not found:
        raise UsageError(
            f"{dataset.folder}: not a single usable pair; an object with a stable and an unstable "
            f"sample is needed, but of {len(names)} objects ({len(dataset)} samples) {only_stable} "
            f"have stable samples only, {only_unstable} unstable ones only, and "
            f"{len(names) - only_stable - only_unstable} none with a label and a condition"
        )
    return found


def choose_pair(candidate: Candidates, index: int, seed: int) -> Pair:
    """The pair at position `index` of a run with `seed`, uniform over what the object offers."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    winner, loser, condition = (
        int(rng.choice(options))
        for options in (candidate.stable, candidate.unstable, candidate.views)
    )
    return Pair(winner, loser, condition)


def pairs(dataset: Dataset, seed: int) -> grain.MapDataset:
    """Endless `Pair`s, random access by position."""
    objects = grain.MapDataset.source(candidates(dataset)).seed(seed).shuffle().repeat()
    return objects.map_with_index(lambda index, candidate: choose_pair(candidate, index, seed))


def batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    *,
    pairing: str = "paired",
    tilt_gap: bool = False,
    process: int = 0,
    processes: int = 1,
) -> grain.MapDataset:
    """Endless batches, random access by step.

    Args:
        dataset: labelled samples.
        batch_size: pairs a step over all processes, B; unpaired, 2 B single samples.
        seed: of the order and of the choices.
        pairing: "paired" or "unpaired".
        tilt_gap: whether pairs come with `gap` (B,), by how many degrees the loser tilts more.
        process, processes: this process takes piece `process` of `processes` of every batch.

    Returns:
        Paired: `win`, `lose` (B, C, r, r, r) and `cond` (B, S, D). Unpaired: `x`, `stable` (2 B,)
        and `cond`. B is divided by `processes`. Arrays have the type in which they are stored.

    Raises:
        UsageError: the dataset cannot give a single batch.
    """
    if pairing == "unpaired":
        examples = _singles(dataset, seed)
        batch_size *= 2
    else:
        examples = pairs(dataset, seed).map(lambda pair: _read_pair(dataset, pair, tilt_gap))
    if processes > 1:
        examples = grain.MapDataset.source(_Piece(examples, batch_size, process, processes))
    return examples.batch(batch_size // processes)


def at(dataset: grain.MapDataset[T], index: int) -> T:
    """The element at `index` of a dataset from which nothing is filtered out."""
    element = dataset[index]
    assert element is not None
    return element


def iterate(
    steps: grain.MapDataset, start: int = 0, *, threads: int = THREADS
) -> grain.DatasetIterator:
    """Iterate over `batches` from step `start`, reading ahead in the background."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD * threads)
    iterator = iter(steps.to_iter_dataset(options))
    state = iterator.get_state()
    iterator.set_state(state | {"next_index": start})
    return iterator


class _Piece:
    """The examples of one process, in order: a source for grain."""

    def __init__(self, examples: grain.MapDataset, batch: int, process: int, processes: int):
        self._examples, self._batch, self._size = examples, batch, batch // processes
        self._first, self._length = process * self._size, len(examples) // processes

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch, row = divmod(index, self._size)
        return at(self._examples, batch * self._batch + self._first + row)


def _singles(dataset: Dataset, seed: int) -> grain.MapDataset:
    labelled = np.flatnonzero(dataset.usable & dataset.has_condition)
    stable = int(dataset.samples["stable"][labelled].sum())
    if stable in (0, len(labelled)):
        raise UsageError(
            f"{dataset.folder}: {stable} of {len(labelled)} labelled samples are stable; unpaired "
            "DRO needs both labels"
        )
    order = grain.MapDataset.source(labelled.tolist()).seed(seed).shuffle().repeat()
    return order.map(lambda index: _read_single(dataset, index))


def _read_pair(dataset: Dataset, pair: Pair, tilt_gap: bool) -> dict[str, np.ndarray]:
    example = {
        "win": dataset.latent(pair.winner),
        "lose": dataset.latent(pair.loser),
        "cond": dataset.condition(pair.condition),
    }
    if tilt_gap:
        tilts = dataset.samples["tilt_deg"]
        example["gap"] = np.asarray(tilts[pair.loser] - tilts[pair.winner], np.float32)
    return example


def _read_single(dataset: Dataset, index: int) -> dict[str, np.ndarray]:
    return {
        "x": dataset.latent(index),
        "stable": dataset.samples["stable"][index],
        "cond": dataset.condition(index),
    }
