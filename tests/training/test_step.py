"""One training step: what it changes, what it leaves alone, and on how many devices."""

from __future__ import annotations

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dso_jax.config import OptimConfig
from dso_jax.errors import UsageError
from dso_jax.models import lora
from dso_jax.objectives import ObjectiveConfig
from dso_jax.training import losses, policy, sharding
from dso_jax.training.diagnosis import diagnose
from dso_jax.training.losses import Comparison
from dso_jax.training.optimizer import learning_rate, make_optimizer
from dso_jax.training.step import init_state, make_diagnose, make_probe, make_step
from tests.models.comparison import FAST_COMPILE
from tests.training.conftest import make_config

KEY = jax.random.key(5)
# Each is a program to compile. Paired DRO is DPO without the reference: its loss alone is tested.
OBJECTIVES = {
    "sft": ObjectiveConfig("sft"),
    "dpo": ObjectiveConfig("dpo"),
    "unpaired": ObjectiveConfig("dro", pairing="unpaired"),
}
# Sums over a batch in another order differ in the last place of float32; beta / 2 = 250 times that
# is what DPO's weights, and so its gradients, differ by.
SAME_UP_TO_SUMMATION = {"rtol": 1e-4, "atol": 1e-5}


@functools.cache
def functions(model, objective, accumulation: int) -> tuple:
    """The jitted functions of a configuration, compiled once for all tests."""
    optim, mesh = make_config("", "").optim, model.mesh
    optimizer = make_optimizer(optim)
    step = make_step(model, objective, optimizer, learning_rate(optim), accumulation, mesh)
    probe = make_probe(model, objective, accumulation, mesh)
    return compiled_once(step), compiled_once(probe), make_diagnose(objective, mesh)


def compiled_once(function):
    """A jitted function, compiled at its first call; it will run for less time than that takes."""
    compiled = []

    def call(*arguments):
        if not compiled:
            lowered = function.lower(*arguments)
            compiled.append(lowered.compile(compiler_options=FAST_COMPILE))
        return compiled[0](*arguments)

    return call


class Setup:
    """Everything a step needs, for one objective."""

    def __init__(self, base, objective, *, grid=(1, 1), accumulation=1, trainable=("lora",)):
        config = dataclasses.replace(make_config("", ""), objective=objective, trainable=trainable)
        mesh = sharding.make_mesh(jax.devices()[: math.prod(grid)], grid[1])
        self.model, leaves, weights = policy.build(config, base, jax.random.key(0), mesh)
        self.weights = sharding.place(weights, sharding.by_shape(mesh))
        state = init_state(leaves, make_optimizer(config.optim))
        self.state = sharding.place(state, sharding.replicated(mesh))
        self.step, self.probe, self.diagnose = functions(self.model, objective, accumulation)
        self.batch = sharding.to_device(make_batch(objective), mesh)

    def run(self, steps: int) -> list[dict]:
        """Take some steps on the one batch; the stats of each."""
        stats = []
        for _ in range(steps):
            self.state, figures = self.step(self.state, self.weights, self.batch, KEY)
            stats.append(jax.device_get(figures))
        return stats

    def measure(self) -> dict:
        probed = self.probe(self.state, self.weights, self.batch, KEY)
        return jax.device_get(self.diagnose(probed))


def make_batch(objective: ObjectiveConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, 8, 2, 4, 4, 4)).astype(np.float32)
    cond = rng.normal(size=(8, 3, 8)).astype(np.float32)
    if objective.pairing == "unpaired":
        return {"x": latents[0], "stable": np.arange(8) % 4 == 0, "cond": cond}
    return {"win": latents[0], "lose": latents[1], "cond": cond}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_changes_the_adapter_and_nothing_else(base, name):
    before = jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), base.flow_params)
    setup = Setup(base, OBJECTIVES[name])
    start = jax.device_get(setup.state.trainable)
    setup.run(3)
    after = lora.combine(setup.state.trainable, setup.weights.frozen)
    assert jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), lora.strip(after)) == before
    moved = jax.tree.map(
        lambda a, b: bool((np.asarray(a) != b).any()), setup.state.trainable, start
    )
    assert len(jax.tree.leaves(moved)) == 10 and all(jax.tree.leaves(moved))
    # No gradient and no optimizer state for a frozen weight: two moments a trainable leaf.
    moments = [leaf for leaf in jax.tree.leaves(setup.state.opt_state) if leaf.ndim]
    assert len(moments) == 20


@pytest.mark.parametrize("name", OBJECTIVES)
def test_policy_is_the_reference_to_the_bit_before_the_first_update(base, name):
    setup = Setup(base, OBJECTIVES[name])
    found = setup.probe(setup.state, setup.weights, setup.batch, KEY)
    np.testing.assert_array_equal(found.err, found.ref)
    figures = setup.measure()
    assert figures["ref_distance"] == 0
    assert figures["margin"] == figures["win_drift"] == figures["lose_drift"] == 0
    assert figures["implicit_accuracy"] == 0.5
    setup.run(3)
    figures = setup.measure()
    assert abs(figures["win_drift"]) > 1e-4 and figures["ref_distance"] > 1e-6


def test_dpo_starts_at_ln_2(base):
    assert abs(Setup(base, OBJECTIVES["dpo"]).measure()["loss"] - np.log(2)) < 1e-7


def test_each_objective_moves_the_errors_its_way(base):
    """Winners' error falls under SFT and DRO, losers' grows under DRO, the margin under DPO."""
    grown = {}
    for name, objective in OBJECTIVES.items():
        setup = Setup(base, objective)
        for _ in range(8):
            setup.state = setup.state._replace(step=jnp.zeros((), jnp.int32))  # the same draws
            setup.run(1)
        setup.state = setup.state._replace(step=jnp.zeros((), jnp.int32))
        grown[name] = setup.measure()
    assert grown["sft"]["win_drift"] < -0.01
    assert grown["dpo"]["margin"] > 0.01 and grown["dpo"]["loss"] < 0.1
    assert grown["dpo"]["implicit_accuracy"] == 1
    assert grown["unpaired"]["win_drift"] < -0.001 < 0.001 < grown["unpaired"]["lose_drift"]


def test_the_step_is_traced_once(base, monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(losses, "draw", chex.assert_max_traces(losses.draw, n=1))
    setup = Setup(base, OBJECTIVES["sft"], trainable=("out_layer",))
    optim = make_config("", "").optim
    optimizer, mesh = make_optimizer(optim), sharding.make_mesh(jax.devices()[:1])
    setup.step = make_step(setup.model, OBJECTIVES["sft"], optimizer, learning_rate(optim), 1, mesh)
    setup.run(3)
    assert int(setup.state.step) == 3


# (data, fsdp); the second is slow because it is between the others.
GRIDS = [(4, 1), pytest.param((2, 2), marks=pytest.mark.slow), (1, 4)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_devices_and_accumulation_do_not_change_the_step(base, grid):
    single = Setup(base, OBJECTIVES["dpo"])
    other = Setup(base, OBJECTIVES["dpo"], grid=grid, accumulation=2)
    assert {shard.data.shape[0] for shard in other.batch["cond"].addressable_shards} == {2}
    chex.assert_trees_all_close(single.measure(), other.measure(), **SAME_UP_TO_SUMMATION)
    chex.assert_trees_all_close(single.run(3), other.run(3), **SAME_UP_TO_SUMMATION)
    trained = [jax.device_get(setup.state.trainable) for setup in (single, other)]
    chex.assert_trees_all_close(*trained, **SAME_UP_TO_SUMMATION)


def test_a_step_that_is_not_finite_is_skipped_and_counted(base):
    setup = Setup(base, OBJECTIVES["dpo"])
    setup.run(1)
    good, kept = setup.batch, jax.device_get(setup.state)
    setup.batch = good | {"win": good["win"].at[0, 0, 0, 0, 0].set(jnp.nan)}
    stats = setup.run(2)[-1]
    assert (stats["skipped"], stats["streak"]) == (2, 2)
    chex.assert_trees_all_equal(jax.device_get(setup.state.trainable), kept.trainable)
    chex.assert_trees_all_equal(jax.device_get(setup.state.opt_state), kept.opt_state)
    setup.batch = good
    stats = setup.run(1)[-1]
    assert (stats["skipped"], stats["streak"], int(setup.state.step)) == (2, 0, 4)
    assert np.isfinite(stats["grad_norm"]) and stats["update_norm"] > 0


def test_paired_dro_is_the_difference_of_the_errors():
    err, ref = jnp.array([[1.0, 2.0], [4.0, 3.0]]), jnp.array([[1.5, 1.0], [1.0, 1.0]])
    config = ObjectiveConfig("dro", loser_weight=0.5)
    figures = diagnose(config, Comparison(err, ref, jnp.zeros((2, 2)), jnp.zeros(2)))
    assert figures["loss"] == np.mean([1 - 0.5 * 2, 4 - 0.5 * 3])
    assert (figures["loss_win"], figures["loss_lose"]) == (2.5, 2.5)
    assert (figures["win_drift"], figures["lose_drift"]) == (1.25, 1.5)
    assert (figures["margin"], figures["implicit_accuracy"]) == (0.25, 0.5)


def test_single_samples_are_compared_across_labels():
    err, ref = jnp.array([[1.0], [2.0], [3.0], [4.0]]), jnp.array([[2.0], [2.0], [1.0], [4.0]])
    stable = jnp.array([True, True, False, False])  # drifts -1, 0 and 2, 0
    config = ObjectiveConfig("dro", pairing="unpaired")
    figures = diagnose(config, Comparison(err, ref, jnp.zeros((4, 1)), jnp.zeros(4), stable))
    assert figures["loss"] == (1 + 2 - 3 - 4) / 4
    assert (figures["loss_win"], figures["loss_lose"]) == (1.5, 3.5)
    assert (figures["win_drift"], figures["lose_drift"]) == (-0.5, 1.0)
    assert figures["margin"] == np.mean([3, 1, 2, 0])
    assert figures["implicit_accuracy"] == np.mean([1, 1, 1, 0.5])


def test_draws_differ_by_step_and_within_a_pair():
    batch = make_batch(OBJECTIVES["dpo"])
    draw = jax.jit(losses.draw, static_argnums=2, compiler_options=FAST_COMPILE)
    groups = jax.device_get(draw(batch, jax.random.fold_in(KEY, 0), ObjectiveConfig("dpo")))
    later = jax.device_get(draw(batch, jax.random.fold_in(KEY, 1), ObjectiveConfig("dpo")))
    assert (groups.t != later.t).all() and (groups.eps != later.eps).all()
    assert (groups.eps[:, 0] != groups.eps[:, 1]).all()
    assert len(np.unique(groups.t)) == 8
    shared = draw(batch, KEY, ObjectiveConfig("dpo", share_noise=True))
    np.testing.assert_array_equal(shared.eps[:, 0], shared.eps[:, 1])
    np.testing.assert_array_equal(shared.x, np.stack([batch["win"], batch["lose"]], 1))


def test_warm_up_starts_at_zero_and_arrives_exactly(base):
    config = OptimConfig(learning_rate=3e-3, warmup_steps=2000)
    rate = learning_rate(config)
    rates = np.array([rate(count) for count in (0, 1999, 2000, 2001, 9000)])
    full = np.float32(3e-3)
    assert rates[0] == 0 < rates[1] < full and (rates[2:] == full).all()
    assert learning_rate(OptimConfig(learning_rate=0.5, warmup_steps=0))(0) == 0.5
    stats = Setup(base, OBJECTIVES["sft"]).run(4)  # with a warm-up of two steps
    np.testing.assert_allclose([s["lr"] for s in stats], [0, 5e-3, 1e-2, 1e-2], rtol=1e-6)
    assert stats[0]["update_norm"] == 0 < stats[1]["update_norm"]


def test_the_clip_bounds_the_gradient_that_adam_sees():
    config = OptimConfig(clip_norm=0.5, warmup_steps=0)
    gradient = {"a": jnp.full(4, 10.0), "b": optax.MaskedNode()}
    optimizer = make_optimizer(config)
    _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
    (mean,) = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim][:1]
    np.testing.assert_allclose(jnp.linalg.norm(mean / (1 - config.betas[0])), 0.5, rtol=1e-6)


def test_weights_of_the_base_train_against_their_old_selves(base):
    before = jax.tree.map(np.asarray, base.flow_params)
    setup = Setup(base, OBJECTIVES["sft"], trainable=("out_layer",))
    assert setup.model.lora is None and len(jax.tree.leaves(setup.state.trainable)) == 2
    setup.run(3)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, base.flow_params), before)
    chex.assert_trees_all_equal(jax.device_get(setup.weights.base), before)
    trained = np.asarray(setup.state.trainable["out_layer"]["kernel"])
    assert (trained != before["out_layer"]["kernel"]).all()


def test_all_attaches_no_adapter(base):
    config = dataclasses.replace(make_config("", ""), trainable=("all",))
    model, leaves, weights = policy.build(config, base, KEY)
    assert model.lora is None and weights.base is not None
    everything = len(jax.tree.leaves(base.flow_params))
    assert len(jax.tree.leaves(leaves)) == everything - 1  # the position table is no weight


def test_patterns_choose_leaves_and_must_match(base):
    setup = Setup(base, OBJECTIVES["sft"], trainable=("blocks/cross_attn/.*/lora_B",))
    assert len(jax.tree.leaves(setup.state.trainable)) == 3
    with pytest.raises(UsageError, match="'no_such_leaf' matches no parameter"):
        Setup(base, OBJECTIVES["sft"], trainable=("lora", "no_such_leaf"))


def test_the_batch_arithmetic_is_said_or_refused():
    mesh = sharding.make_mesh(jax.devices()[:4])
    assert "48 pairs a step = 4 device(s) x 2 accumulation x 6" in sharding.check_batch(48, 2, mesh)
    with pytest.raises(UsageError, match=r"6 is not a multiple of 4 devices x .*accumulation 1"):
        sharding.check_batch(6, 1, mesh)


def test_bfloat16_keeps_adapter_and_optimizer_in_float32(base):
    config = make_config("", "")
    system = dataclasses.replace(config.system, dtype="bfloat16")
    config = dataclasses.replace(config, system=system)
    _, trainable, weights = policy.build(config, base, jax.random.key(0))
    kernel = weights.frozen["blocks"]["self_attn"]["to_qkv"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert weights.frozen["input_layer"]["kernel"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {jnp.dtype(jnp.float32)}


def test_a_pair_brings_its_condition_once_and_stands_side_by_side():
    seen = []

    def velocity(x, t, cond):
        seen.append((x, t, cond))
        return jnp.zeros_like(x)

    batch = make_batch(OBJECTIVES["dpo"])
    groups = losses.draw(batch, KEY, OBJECTIVES["dpo"])
    losses.errors(velocity, groups)
    ((x, t, cond),) = seen
    assert (x.shape[0], cond.shape[0]) == (16, 8)
    np.testing.assert_array_equal(t, np.repeat(groups.t, 2))
    for pair in range(8):
        for row, name in ((2 * pair, "win"), (2 * pair + 1, "lose")):
            member = row % 2
            expected = (1 - t[row]) * batch[name][pair] + t[row] * groups.eps[pair, member]
            np.testing.assert_allclose(x[row], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(cond, batch["cond"])
