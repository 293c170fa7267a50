"""The mesh (data, fsdp): which part of a weight a device holds, and what it fetches when."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dso_jax.config import SystemConfig
from dso_jax.errors import UsageError
from dso_jax.models import FLOW_SIZES, init_flow
from dso_jax.objectives import ObjectiveConfig
from dso_jax.training import policy, setup, sharding
from dso_jax.training.optimizer import learning_rate, make_optimizer
from dso_jax.training.step import init_state, make_step
from tests.models.comparison import FAST_COMPILE
from tests.training.conftest import make_config
from tests.training.test_step import make_batch


def mesh(data: int, fsdp: int):
    return sharding.make_mesh(jax.devices()[: data * fsdp], fsdp)


def bytes_on(device, tree) -> int:
    """What the leaves of `tree` take on one device."""
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


def test_the_largest_axis_that_divides_is_spread_and_no_other():
    choose = sharding.by_shape(mesh(1, 4))
    assert choose((24, 1024, 3072)).spec == P(None, None, "fsdp")
    assert choose((24, 4096, 1024)).spec == P(None, "fsdp")
    assert choose((24, 1024)).spec == P(None, "fsdp")
    assert choose((24, 1023)).spec == P("fsdp")  # nothing else divides
    assert choose((3, 7)).spec == choose(()).spec == P()
    assert sharding.by_shape(mesh(4, 1))((24, 1024)).spec == P()


@pytest.mark.parametrize("name", FLOW_SIZES)
def test_no_published_size_spreads_its_blocks(name):
    """A scan over blocks of which each device holds some would fetch all of them at every turn."""
    shapes = jax.eval_shape(lambda key: init_flow(FLOW_SIZES[name], key), jax.random.key(0))
    choose = sharding.by_shape(mesh(1, 4))
    specs = [choose(leaf.shape).spec for leaf in jax.tree.leaves(shapes["blocks"])]
    assert all(spec[0] is None and "fsdp" in spec for spec in specs)


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_the_base_is_loaded_in_parts(fsdp):
    config = dataclasses.replace(make_config("", ""), base="toybox")
    grid = mesh(4 // fsdp, fsdp)
    base = setup.load_base(config, grid)
    leaves = jax.tree.leaves(base.flow_params)
    whole = sum(leaf.nbytes for leaf in leaves)
    expected = sum(
        leaf.nbytes // (fsdp if any(size % fsdp == 0 for size in leaf.shape) else 1)
        for leaf in leaves
    )
    held = {bytes_on(device, base.flow_params) for device in grid.devices.flat}
    assert held == {expected} and math.isclose(expected * fsdp, whole, rel_tol=1e-3)


def test_a_step_gathers_one_block_at_a_time(base):
    config = dataclasses.replace(make_config("", ""), system=SystemConfig(fsdp=4))
    grid = mesh(1, 4)
    model, leaves, weights = policy.build(config, base, jax.random.key(0), grid)
    weights = sharding.place(weights, sharding.by_shape(grid))
    assert bytes_on(jax.devices()[0], weights) < 0.26 * sum(
        leaf.nbytes for leaf in jax.tree.leaves(weights)
    )
    objective, optimizer = ObjectiveConfig("sft"), make_optimizer(config.optim)
    state = sharding.place(init_state(leaves, optimizer), sharding.replicated(grid))
    step = make_step(model, objective, optimizer, learning_rate(config.optim), 1, grid)
    # 24 examples: 6 x 8 tokens a device is no width of the model, so that shapes tell what is what.
    rows = {name: np.concatenate([value] * 3) for name, value in make_batch(objective).items()}
    batch = sharding.to_device(rows, grid)
    compiled = step.lower(state, weights, batch, jax.random.key(0)).compile(
        compiler_options=FAST_COMPILE
    )
    text = compiled.as_text()
    fetched = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    shapes = {tuple(map(int, shape.split(","))) for shape in fetched}
    blocks = {leaf.shape for leaf in jax.tree.leaves(weights.frozen["blocks"])}
    assert any(math.prod(shape) == 16 * 48 for shape in shapes)  # one block's to_qkv
    assert not shapes & blocks
    # Nor does the backward pass find them stacked again among what the forward pass left it.
    assert "[2,16,16]" in text and "[2,64,16]" not in text  # the mlp's second, in parts and whole
    # The step leaves the parts where they are: nothing was donated or moved.
    step_state, _ = compiled(state, weights, batch, jax.random.key(0))
    assert int(step_state.step) == 1
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(weights))


def test_what_is_placed_keeps_its_values(base):
    placed = sharding.place(base.flow_params, sharding.by_shape(mesh(2, 2)))
    for ours, theirs in zip(
        jax.tree.leaves(placed), jax.tree.leaves(base.flow_params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    again = sharding.place(placed, sharding.by_shape(mesh(2, 2)))
    assert jax.tree.map(lambda leaf: leaf.sharding, again) == jax.tree.map(
        lambda leaf: leaf.sharding, placed
    )


def test_a_batch_or_mesh_that_does_not_divide_is_refused_with_a_sentence():
    with pytest.raises(UsageError, match=r"system.fsdp 3 does not divide 4 device"):
        sharding.make_mesh(jax.devices(), 3)
    grid = mesh(2, 2)
    with pytest.raises(UsageError, match=r"train.batch_size 12 .* 4 devices x .* 2; try 8"):
        sharding.check_batch(12, 2, grid)
    sentence = sharding.check_batch(48, 2, grid)
    assert sentence == "48 pairs a step = 4 device(s) x 2 accumulation x 6"
