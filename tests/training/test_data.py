"""Pairs: pure in (index, seed), uniform, resumable, shared out by process, and refused if none."""

from __future__ import annotations

import numpy as np
import pytest

from dso_jax import data
from dso_jax.dataset.store import Dataset
from dso_jax.errors import UsageError
from tests.training.conftest import labels, write_dataset

# Chance of a false alarm below 1e-6 for a uniform choice: five standard deviations.
SIGMAS = 5.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five objects of three views and nine samples; one has a single label, one an invalid row."""
    columns = labels(objects=5, samples=9, views=3)
    columns["stable"][:9] = True
    columns["status"] = columns["status"].astype("<U7")
    columns["status"][10] = "invalid"
    return Dataset(write_dataset(tmp_path_factory.mktemp("pairs"), columns))


def test_a_pair_is_one_object_with_both_labels(dataset):
    samples = dataset.samples
    pairs = data.pairs(dataset, seed=0)
    for index in range(200):
        winner, loser, condition = data.at(pairs, index)
        assert samples["object"][winner] == samples["object"][loser]
        assert samples["object"][condition] == samples["object"][winner]
        assert samples["stable"][winner] and not samples["stable"][loser]
        assert "invalid" not in (samples["status"][winner], samples["status"][loser])
        assert samples["object"][winner] != "object-00"  # it never falls


def test_a_view_without_a_condition_is_learned_from_but_never_shown(tmp_path):
    columns = labels(objects=1, samples=9, views=3)
    columns["condition_row"] = np.where(columns["view"] == 1, -1, columns["condition_row"])
    dataset = Dataset(write_dataset(tmp_path / "some", columns))
    (only,) = data.candidates(dataset)
    views = dataset.samples["view"]
    assert views[only.views].tolist() == [0, 2]
    assert len(only.stable) + len(only.unstable) == 9
    singles = data.batches(dataset, 4, seed=0, pairing="unpaired")
    assert data.at(singles, 5)["cond"].shape == (8, 3, 8)  # twelve draws hold every sample twice

    columns["condition_row"][:] = -1
    with pytest.raises(UsageError, match="1 none with a label and a condition"):
        data.candidates(Dataset(write_dataset(tmp_path / "none", columns)))


def test_pairs_are_a_pure_function_of_index_and_seed(dataset):
    pairs, same, other = (data.pairs(dataset, seed) for seed in (3, 3, 4))
    assert [pairs[i] for i in (7, 0, 1000, 7)] == [same[i] for i in (7, 0, 1000, 7)]
    assert [pairs[i] for i in range(50)] != [other[i] for i in range(50)]


def test_objects_take_turns_in_a_new_order_every_epoch(dataset):
    pairs = data.pairs(dataset, seed=0)
    names = [str(dataset.samples["object"][data.at(pairs, i).winner]) for i in range(400)]
    epochs = [names[i : i + 4] for i in range(0, 400, 4)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 18  # of the 24 orders of four objects


def test_winner_loser_and_view_are_uniform_and_independent(dataset):
    candidate = data.candidates(dataset)[-1]
    draws = 4000
    chosen = [data.choose_pair(candidate, index, seed=0) for index in range(draws)]
    options = (candidate.stable, candidate.unstable, candidate.views)
    assert [len(option) for option in options] == [5, 4, 3]
    cells, counts = np.unique(np.array(chosen), axis=0, return_counts=True)
    assert len(cells) == 5 * 4 * 3
    expected = draws / len(cells)
    assert np.abs(counts - expected).max() < SIGMAS * np.sqrt(expected)


def test_condition_candidates_are_one_sample_a_view(dataset):
    for candidate in data.candidates(dataset):
        assert dataset.samples["view"][candidate.views].tolist() == [0, 1, 2]


def test_a_batch_holds_what_its_pairs_point_at(dataset):
    batch = data.at(data.batches(dataset, batch_size=4, seed=1), 2)
    pairs = data.pairs(dataset, seed=1)
    for row in range(4):
        winner, loser, condition = data.at(pairs, 2 * 4 + row)
        np.testing.assert_array_equal(batch["win"][row], dataset.latent(winner))
        np.testing.assert_array_equal(batch["lose"][row], dataset.latent(loser))
        np.testing.assert_array_equal(batch["cond"][row], dataset.condition(condition))


@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
def test_processes_share_a_batch_without_overlap(dataset, pairing):
    whole = data.at(data.batches(dataset, 8, seed=1, pairing=pairing), 3)
    parts = [
        data.at(data.batches(dataset, 8, 1, pairing=pairing, process=p, processes=4), 3)
        for p in range(4)
    ]
    for name, values in whole.items():
        for process, part in enumerate(parts):
            size = len(values) // 4
            np.testing.assert_array_equal(part[name], values[process * size :][:size])


def test_iteration_starts_anywhere(dataset):
    batches = data.batches(dataset, batch_size=2, seed=0)
    iterator = data.iterate(batches, start=5)
    for step in (5, 6, 7):
        np.testing.assert_array_equal(next(iterator)["win"], data.at(batches, step)["win"])


def test_unpaired_samples_keep_the_label_mix(dataset):
    usable = int(dataset.usable.sum())
    batches = data.batches(dataset, batch_size=usable // 2, seed=0, pairing="unpaired")
    batch = data.at(batches, 0)
    assert batch["x"].shape == (usable, 2, 4, 4, 4) and batch["cond"].shape == (usable, 3, 8)
    assert batch["stable"].sum() == dataset.samples["stable"][dataset.usable].sum()


def one_label(columns, value):
    columns["stable"][:] = value


def nothing_valid(columns):
    columns["status"] = np.full(len(columns["status"]), "invalid")


def labels_apart(columns):
    columns["stable"] = columns["object"] < "object-02"


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda c: one_label(c, True), "3 have stable samples only, 0 unstable ones only, and 0 "),
        (lambda c: one_label(c, False), "0 have stable samples only, 3 unstable ones only, and 0 "),
        (nothing_valid, "0 have stable samples only, 0 unstable ones only, and 3 none"),
        (labels_apart, "2 have stable samples only, 1 unstable ones only, and 0 "),
    ],
    ids=["stable", "unstable", "invalid", "apart"],
)
def test_a_dataset_without_a_pair_is_refused_with_the_counts(tmp_path, change, counts):
    columns = labels(objects=3, samples=2)
    change(columns)
    dataset = Dataset(write_dataset(tmp_path / "data", columns))
    with pytest.raises(UsageError, match=r"no.* usable pair.* 3 objects \(6 samples\) " + counts):
        data.batches(dataset, 2, seed=0)


def test_unpaired_needs_both_labels_somewhere(tmp_path):
    columns = labels(objects=3, samples=2)
    labels_apart(columns)
    apart = Dataset(write_dataset(tmp_path / "apart", columns))
    data.batches(apart, 2, seed=0, pairing="unpaired")
    one_label(columns, True)
    alike = Dataset(write_dataset(tmp_path / "alike", columns))
    with pytest.raises(UsageError, match="6 of 6 labelled samples are stable"):
        data.batches(alike, 2, seed=0, pairing="unpaired")
