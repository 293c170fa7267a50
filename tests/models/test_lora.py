"""LoRA as algebra: what it must leave alone, what it must add, and who trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dso_jax.models import FlowConfig, LoRAConfig, apply_flow, init_flow, lora
from tests.models.comparison import FORWARD, difference
from weight_port.convert import flatten, unflatten

CONFIG = FlowConfig(resolution=3, model_channels=24, cond_channels=12, num_blocks=2, num_heads=2)
LORA = LoRAConfig(rank=3, alpha=5.0)
forward = jax.jit(apply_flow, static_argnums=0, static_argnames="lora")


@pytest.fixture(scope="module")
def base():
    """Random in every leaf: the released initialisation has layers of zeros, which hide faults."""
    shapes = flatten(jax.eval_shape(lambda: init_flow(CONFIG, jax.random.key(0))))
    rng = np.random.default_rng(0)
    return unflatten(
        {
            path: jnp.float32(rng.normal(size=s.shape) / s.shape[-1] ** 0.5)
            for path, s in shapes.items()
        }
    )


@pytest.fixture(scope="module")
def policy(base):
    return lora.attach(base, LORA, jax.random.key(1))


@pytest.fixture(scope="module")
def trained(policy):
    """As after training: B is no longer zero."""
    rng = np.random.default_rng(2)

    def fill(path, leaf):
        if path[-1].key != "lora_B":
            return leaf
        return jnp.float32(rng.normal(size=leaf.shape) * LORA.rank**-0.5)

    return jax.tree_util.tree_map_with_path(fill, policy)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    x, cond = rng.normal(size=(2, 8, 3, 3, 3)), rng.normal(size=(2, 5, 12))
    return jnp.float32(x), jnp.float32([0.2, 0.9]), jnp.float32(cond)


def test_fresh_adapter_leaves_the_base_unchanged_to_the_bit(base, policy, batch):
    ours = forward(CONFIG, policy, *batch, lora=LORA)
    np.testing.assert_array_equal(ours, forward(CONFIG, base, *batch))


def test_merged_weights_equal_base_and_adapter(base, trained, batch):
    adapted = forward(CONFIG, trained, *batch, lora=LORA)
    merged = forward(CONFIG, lora.merge(trained, LORA), *batch)
    assert difference(merged, adapted) <= FORWARD
    assert difference(adapted, forward(CONFIG, base, *batch)) > 0.01  # the adapter does something


def test_merge_in_numpy(trained):
    merged = lora.merge(trained, LORA)["blocks"]["cross_attn"]["to_kv"]["kernel"]
    leaf = trained["blocks"]["cross_attn"]["to_kv"]
    for block in range(CONFIG.num_blocks):
        delta = np.asarray(leaf["lora_A"][block], np.float64) @ leaf["lora_B"][block]
        expected = leaf["kernel"][block] + 5.0 / 3.0 * delta
        np.testing.assert_allclose(merged[block], expected, rtol=1e-5, atol=1e-6)


def test_attach_starts_as_peft_does(policy):
    for path, leaf in flatten(lora.adapter_leaves(policy)).items():
        if path.endswith("lora_B"):
            assert not leaf.any()
        else:
            bound = leaf.shape[1] ** -0.5
            assert 0.8 * bound < jnp.abs(leaf).max() <= bound
            assert not jnp.array_equal(leaf[0], leaf[1])


def test_attach_and_init_make_the_same_tree(policy):
    made = jax.eval_shape(lambda: init_flow(CONFIG, jax.random.key(0), LORA))
    assert jax.tree.structure(made) == jax.tree.structure(policy)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, made, policy))


def test_attach_refuses_a_target_that_is_nowhere(base):
    with pytest.raises(ValueError, match="to_v"):
        lora.attach(base, LoRAConfig(targets=("to_q", "to_v")), jax.random.key(0))


def test_strip_and_adapter_leaves_share_nothing_and_lose_nothing(base, policy):
    alone, adapter = lora.strip(policy), lora.adapter_leaves(policy)
    assert set(flatten(alone)) == set(flatten(base))
    assert len(flatten(alone)) + len(flatten(adapter)) == len(flatten(policy))
    again = lora.with_adapter(alone, adapter)
    assert flatten(again).keys() == flatten(policy).keys()
    assert all(flatten(again)[path] is leaf for path, leaf in flatten(policy).items())


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["lora"], lambda path: "lora_" in path),
        (["all"], lambda path: path != "pos_emb"),
        ([r"self_attn/to_qkv/lora_"], lambda path: "self_attn/to_qkv/lora_" in path),
        (["lora", r"^out_layer/"], lambda path: "lora_" in path or path.startswith("out_layer/")),
        ([r"norm2/(scale|bias)$"], lambda path: "norm2/" in path),
    ],
)
def test_mask_selects_by_name(policy, patterns, expected):
    mask = flatten(lora.trainable_mask(policy, patterns))
    assert mask == {path: expected(path) for path in flatten(policy)}
    assert any(mask.values())


@pytest.mark.parametrize("pattern", ["to_qvk", "pos_emb", "[", "^lora_A"])
def test_mask_refuses_a_pattern_without_a_match(policy, pattern):
    with pytest.raises(ValueError, match="trainable") as raised:
        lora.trainable_mask(policy, ["lora", pattern])
    assert repr(pattern) in str(raised.value)


def test_mask_refuses_lora_without_an_adapter(base):
    with pytest.raises(ValueError, match="'lora'"):
        lora.trainable_mask(base, ["lora"])


def test_partition_and_combine_are_inverse(policy):
    trainable, frozen = lora.partition(policy, lora.trainable_mask(policy, ["lora"]))
    assert len(jax.tree.leaves(trainable)) == 10
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(policy)) - 10
    again = lora.combine(trainable, frozen)
    assert flatten(again).keys() == flatten(policy).keys()
    assert all(flatten(again)[path] is leaf for path, leaf in flatten(policy).items())


def test_gradient_of_frozen_weights_is_not_computed(policy, batch):
    """No leaf for it, and fewer operations in the program than for training everything."""
    operations = {}
    for pattern in ("lora", "all"):
        trainable, frozen = lora.partition(policy, lora.trainable_mask(policy, [pattern]))

        def loss(trainable, frozen):
            v = apply_flow(CONFIG, lora.combine(trainable, frozen), *batch, lora=LORA)
            return jnp.mean(v**2)

        program = jax.jit(jax.grad(loss)).lower(trainable, frozen)
        operations[pattern] = (program.cost_analysis() or {})["flops"]
        gradient = program.out_info
        assert jax.tree.structure(gradient) == jax.tree.structure(trainable)
    assert operations["lora"] < 0.9 * operations["all"]


def test_optimizer_keeps_no_state_for_frozen_weights(policy):
    trainable, _ = lora.partition(policy, lora.trainable_mask(policy, ["lora"]))
    state = optax.adamw(1e-3).init(trainable)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 1 + 2 * sum(
        leaf.size for leaf in jax.tree.leaves(lora.adapter_leaves(policy))
    )


def test_parameters_with_other_names_are_refused(base, policy, batch):
    renamed = {**base, "blocks": {**base["blocks"]}}
    renamed["blocks"]["crossattn"] = renamed["blocks"].pop("cross_attn")
    with pytest.raises(ValueError, match=r"missing blocks/cross_attn.*unexpected blocks/crossattn"):
        apply_flow(CONFIG, renamed, *batch)
    with pytest.raises(ValueError, match=r"unexpected .*lora_A"):
        apply_flow(CONFIG, policy, *batch)
    with pytest.raises(ValueError, match=r"missing .*lora_A"):
        apply_flow(CONFIG, base, *batch, lora=LORA)
