"""`train.py --plan`: counted against hand counts, and against the arrays of a real step."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dso_jax.cli import main as dso
from dso_jax.config import Config, SystemConfig, TrainConfig
from dso_jax.models import FLOW_SIZES, FlowConfig, apply_flow, init_flow
from dso_jax.objectives import ObjectiveConfig
from dso_jax.training import cards, flops, plan, policy, sharding
from dso_jax.training.optimizer import make_optimizer
from dso_jax.training.step import init_state
from tests.training.conftest import FLOW, make_config
from tests.training.test_step import make_batch


def forward_by_hand(flow: FlowConfig, tokens: int) -> int:
    """Operations of the matrix products of one sample's forward pass."""
    width, length, patch = flow.model_channels, flow.num_tokens, flow.patch_size**3
    hidden = int(width * flow.mlp_ratio)
    each = (
        length * width * (3 * width + width)  # to_qkv, to_out
        + 2 * length * length * width  # scores, and values by them
        + length * width * (width + width)  # cross: to_q, to_out
        + tokens * flow.cond_channels * 2 * width  # to_kv
        + 2 * length * tokens * width
        + 2 * length * width * hidden
        + width * 6 * width  # adaLN
    )
    ends = length * width * patch * (flow.in_channels + flow.out_channels)
    time = 256 * width + width * width
    return 2 * (flow.num_blocks * each + ends + time)


@pytest.mark.parametrize("name", ["toybox", "TRELLIS-image-large"])
def test_matrix_products_are_counted_as_by_hand(name):
    flow = FLOW_SIZES[name]
    tokens = plan.TOKENS[flow.cond_channels]
    shapes = jax.eval_shape(lambda key: init_flow(flow, key), jax.random.key(0))
    latent = jax.ShapeDtypeStruct((2, flow.in_channels, *[flow.resolution] * 3), jnp.float32)
    time = jax.ShapeDtypeStruct((2,), jnp.float32)
    cond = jax.ShapeDtypeStruct((2, tokens, flow.cond_channels), jnp.float32)

    def forward(params, x, t, cond):
        return apply_flow(flow, params, x, t, cond, attention="xla")

    assert flops.count(forward, shapes, latent, time, cond) == 2 * forward_by_hand(flow, tokens)


def test_a_scan_counts_as_often_as_it_turns_and_one_branch_of_a_cond():
    x = jnp.ones((4, 4))

    def turns(x):
        return jax.lax.scan(lambda h, _: (h @ x, None), x, length=7)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    assert flops.count(turns, x) == 7 * 2 * 4**3
    assert flops.count(jax.jit(branch), x) == 2 * 2 * 4**3


@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
def test_the_planned_arguments_are_those_of_a_step(base, dataset_folder, pairing):
    config = make_config(dataset_folder, "nowhere", "dro")
    objective = ObjectiveConfig("dro", pairing=pairing)
    config = dataclasses.replace(
        config, objective=objective, system=SystemConfig(dtype="bfloat16", fsdp=2)
    )
    mesh = sharding.make_mesh(jax.devices()[:2], 2)
    model, trainable, weights = policy.build(config, base, jax.random.key(0), mesh)
    state = init_state(trainable, make_optimizer(config.optim))
    program = plan.build(config, FLOW, mesh)
    assert program.policy == model

    def described(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)

    assert described(program.arguments[0]) == described(state)
    assert described(program.arguments[1]) == described(weights)
    placed = sharding.place(weights, sharding.by_shape(mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, program.arguments[1]) == jax.tree.map(
        lambda leaf: leaf.sharding, placed
    )
    size = 2 if pairing == "unpaired" else 1  # the batch of the tests has 8 rows in both
    batch = {k: (8 * size, *v.shape[1:]) for k, v in make_batch(objective).items()}
    assert {k: v.shape for k, v in program.arguments[2].items()} == batch


def test_a_plan_at_toybox_size(monkeypatch, capsys):
    monkeypatch.setattr("jax.devices", lambda: [jax.local_devices()[0]])
    command = ["train", "--plan", "--device", "rtx-24g", "--base", "toybox", "--data", "nowhere"]
    assert dso.main([*command, "--objective.name", "sft", "--train.batch_size", "4"]) == 0
    text = capsys.readouterr().out
    assert "toybox, SFT: 4 pairs a step = 1 device(s) x 1 accumulation x 4" in text
    # 5 blocks, rank 64: to_qkv, three of 128 x 128 (to_q, two to_out), to_kv.
    lora = 5 * 64 * ((128 + 384) + 3 * (128 + 128) + (208 + 256))
    assert f"{lora:,} of " in text
    found = re.search(r"compiler: ([\d.]+) GiB: base ([\d.]+), .*workspace ([\d.]+)", text)
    assert found is not None
    total, base, workspace = map(float, found.groups())
    assert total > base + workspace > workspace > 0
    assert re.search(r"largest batch in [\d.]+ GiB a device: about [1-9]\d* pairs", text)
    assert "estimate for 1 x rtx-24g" in text and "not measured there" in text


def test_the_estimate_meets_the_measurements_that_it_is_made_from():
    """12 samples of TRELLIS-image-large in bf16: 6.6 GiB with all recomputed, 110 with nothing."""
    flow, fixed = FLOW_SIZES["TRELLIS-image-large"], 1.053 + 0.229 * 4 / 3
    for remat, measured in (("full", 6.6), ("none", 110)):
        found = fixed + 12 * cards.sample_bytes(flow, remat, 2) / cards.GIB
        assert found == pytest.approx(measured, rel=0.02)
    # 17.5 TFLOP a sample: 5.1 forward, once more recomputed, and 7.3 backward.
    assert cards.seconds(cards.CARDS["h200-141g"], 12 * 17.5e12, 1) == pytest.approx(0.571, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "--device", "abacus"], "--device abacus: expected one of rtx-24g"),
        (["--device", "a100-80g"], "after --plan"),
        (["--plan", "--device"], "--device takes the name of a card"),
        (["--plan", "--train.batch_size", "7"], "train.batch_size 7 is not a multiple of 4"),
        (["--plan", "--base", "nothing"], "base 'nothing'"),
    ],
)
def test_an_impossible_plan_is_refused(arguments, message, capsys):
    assert dso.main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_plan_needs_no_data_but_uses_them(dataset_folder):
    config = Config(data=str(dataset_folder), train=TrainConfig(batch_size=4))
    mesh = sharding.make_mesh(jax.devices()[:1])
    assert plan.build(config, FLOW, mesh).arguments[2]["cond"].shape == (4, 3, 8)
    config = dataclasses.replace(config, data="nowhere", base="toybox")
    assert plan.build(config, FLOW_SIZES["toybox"], mesh).arguments[2]["cond"].shape == (4, 16, 208)
