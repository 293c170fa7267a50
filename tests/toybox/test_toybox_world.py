"""Splits and bulk drawing."""

import numpy as np
import pytest

from dso_jax import toybox


def test_splits_are_disjoint_and_prefixes_of_one_another():
    seeds = {name: toybox.split(name, 5000) for name in toybox.SPLITS}
    assert set(seeds) == {"train", "preference", "heldout"}
    assert len(set().union(*seeds.values())) == 3 * 5000
    for name in toybox.SPLITS:
        assert toybox.split(name, 7) == seeds[name][:7]
    # A split as large as it may be still ends before the next one starts.
    assert toybox.split("preference", 1)[0] >= 10_000_000


def test_wrong_splits_are_named():
    with pytest.raises(ValueError, match="expected one of train, preference, heldout, got 'test'"):
        toybox.split("test", 3)
    with pytest.raises(ValueError, match="count: expected"):
        toybox.split("train", -1)


def test_many_objects_are_the_single_ones_in_order():
    seeds = [12, 3, 12]
    solid = toybox.make_objects(seeds)
    assert solid.shape == (3, 32, 32, 32) and solid.dtype == np.uint8
    for row, seed in zip(solid, seeds, strict=True):
        np.testing.assert_array_equal(row, toybox.make_object(seed).occupancy)
    assert toybox.make_objects([]).shape == (0, 32, 32, 32)


def test_processes_give_what_one_process_gives():
    seeds = toybox.split("train", 100)
    np.testing.assert_array_equal(toybox.make_objects(seeds, workers=2), toybox.make_objects(seeds))
