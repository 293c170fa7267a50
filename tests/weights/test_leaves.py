"""Leaves: made one at a time, of parts and blocks, and independent of their source."""

from __future__ import annotations

import weakref

import jax
import numpy as np

from tests.models.sizes import FLOWS
from tests.weights.test_convert import assert_same_bytes, random_state
from weight_port import from_torch, to_torch
from weight_port.convert import export, flatten, load, plan, unflatten
from weight_port.models import slots
from weight_port.rules import Rule

SMALL = FLOWS["patch1"]


def test_source_is_not_changed_and_not_shared():
    state = random_state("flow", SMALL)
    before = {name: value.copy() for name, value in state.items()}
    params = from_torch("flow", SMALL, state, place=np.asarray)
    for leaf in jax.tree.leaves(params):
        leaf[...] = 7
    assert_same_bytes(state, before)
    params = from_torch("flow", SMALL, state, place=np.asarray)
    exported = to_torch("flow", SMALL, params)
    for value in exported.values():
        value[...] = 7
    assert_same_bytes(to_torch("flow", SMALL, params), before)


def test_each_leaf_is_placed_as_it_is_finished():
    placed = []
    params = from_torch("flow", SMALL, random_state("flow", SMALL), place=placed.append)
    assert len(placed) == len(slots("flow", SMALL))
    assert set(flatten(params).values()) == {None}
    assert all(leaf.flags.c_contiguous for leaf in placed)


def test_one_leaf_at_a_time_is_in_host_memory():
    """Each leaf can be freed before the next one is made."""
    alive = []

    def place(leaf):
        alive.append(weakref.ref(leaf))
        assert sum(ref() is not None for ref in alive) == 1

    from_torch("flow", SMALL, random_state("flow", SMALL), place=place)
    assert len(alive) == len(slots("flow", SMALL))


JOINED = Rule("layer.{block}.{part:query|key|value}.weight", "blocks/qkv/kernel", (1, 0))


def test_parts_of_a_leaf_are_joined_along_torchs_rows():
    shape = jax.ShapeDtypeStruct((2, 4, 9), np.float32)
    (slot,) = plan([JOINED], unflatten({"blocks/qkv/kernel": shape}))
    assert slot.names[:4] == tuple(
        f"layer.{i}.{part}.weight"
        for i, part in [(0, "query"), (0, "key"), (0, "value"), (1, "query")]
    )
    rng = np.random.default_rng(0)
    state = {name: rng.normal(size=(3, 4)).astype(np.float32) for name in slot.names}
    tree = load([slot], state, source="file", target="model")
    rows = [state[f"layer.1.{part}.weight"] for part in ("query", "key", "value")]
    np.testing.assert_array_equal(tree["blocks"]["qkv"]["kernel"][1], np.concatenate(rows).T)
    assert_same_bytes(export([slot], tree), state)
    assert JOINED.to_ours("layer.1.key.weight") == ("blocks/qkv/kernel", 1)
    assert JOINED.to_ours("layer.1.out.weight") is None
