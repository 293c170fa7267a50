"""Options that change how the model runs but not what it computes: remat, attention, types."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dso_jax.models import (
    FlowConfig,
    LoRAConfig,
    apply_decoder,
    apply_flow,
    attention,
    flow_context,
    init_flow,
    lora,
)
from dso_jax.models.config import DecoderConfig
from dso_jax.models.structure_vae import init_decoder
from dso_jax.sampler import SamplerConfig, sample
from dso_jax.training import flops
from tests.models.comparison import FAST_COMPILE, FORWARD, TRAJECTORY, difference
from tests.models.sizes import random_params

CONFIG = FlowConfig(resolution=4, model_channels=24, cond_channels=12, num_blocks=3, num_heads=2)
LORA = LoRAConfig(rank=2, alpha=3.0)
# A torso in bf16 has a relative step of 8e-3 and adds some of them over a few layers.
HALF = 5e-2


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def batch():
    """Two samples of each of two images."""
    rng = np.random.default_rng(1)
    x, cond = rng.normal(size=(4, 8, 4, 4, 4)), rng.normal(size=(2, 5, 12))
    return jnp.float32(x), jnp.float32([0.1, 0.6, 0.3, 0.9]), jnp.float32(cond)


# How the arithmetic may be carried out, each compared with the plain way. With three blocks,
# `unroll` 2 leaves a rest and 3 no loop.
VARIANTS = {
    "full": {"remat": "full"},
    "attention": {"remat": "attention"},
    "attention+qkv": {"remat": "attention+qkv"},
    "products": {"remat": "products"},
    "unroll 3": {"unroll": 3, "remat": "full"},
    "split": {"projections": "split", "remat": "products"},
    "joined, padded, unroll 2": {"lora_product": "joined", "pad_condition": 4, "unroll": 2},
    "dots": {"remat": "dots"},
}
LESS = ("dots",)  # a program each takes seconds to compile


@pytest.fixture(scope="module")
def adapted(params):
    """The parameters with an adapter, random in every leaf too."""
    rng = np.random.default_rng(2)
    fresh = lora.attach(params, LORA, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: leaf if leaf.any() else jnp.float32(0.3 * rng.normal(size=leaf.shape)), fresh
    )


@pytest.fixture(scope="module")
def program(adapted, batch):
    """Returns a function from choices to the compiled loss and gradient of the adapter."""
    trainable, frozen = lora.partition(adapted, lora.trainable_mask(adapted, ["lora"]))

    @functools.cache
    def compiled(choices):
        def loss(trainable):
            both = lora.combine(trainable, frozen)
            return jnp.mean(apply_flow(CONFIG, both, *batch, lora=LORA, **dict(choices)) ** 2)

        step = jax.jit(jax.value_and_grad(loss))
        found = step.lower(trainable).compile(compiler_options=FAST_COMPILE)
        return found, jax.device_get(found(trainable)), flops.count(jax.grad(loss), trainable)

    return lambda **choices: compiled(tuple(choices.items()))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LESS else n for n in VARIANTS]
)
def test_ways_of_execution_do_not_change_values(program, name):
    _, (value, gradient), _ = program()
    _, (other_value, other_gradient), _ = program(**VARIANTS[name])
    np.testing.assert_allclose(other_value, value, rtol=1e-6)
    errors = jax.tree.map(difference, other_gradient, gradient)
    assert len(jax.tree.leaves(errors)) == 10 and max(jax.tree.leaves(errors)) < FORWARD, errors


def test_remat_trades_memory_for_operations(program):
    """From keeping all to keeping a block's input alone; `products` repeats none of them."""
    memory, work = {}, {}
    for remat in ("none", "products", "attention+qkv", "attention", "full"):
        found, _, work[remat] = program(**({} if remat == "none" else {"remat": remat}))
        memory[remat] = found.memory_analysis().temp_size_in_bytes
    assert memory["none"] > memory["products"] > memory["attention+qkv"] > memory["full"]
    assert memory["attention+qkv"] > memory["attention"]
    # XLA's attention cannot be kept without its weights, so `products` makes the scores again; and
    # the modulation, a product of one row a sample.
    width = CONFIG.model_channels
    again = CONFIG.num_blocks * 2 * 4 * (64 * (64 + 5) * width + width * 6 * width)
    assert work["products"] == work["none"] + again
    assert work["full"] > work["attention"] > work["attention+qkv"] > work["products"]


@pytest.mark.parametrize(("unroll", "barriers"), [(CONFIG.num_blocks, True), (1, False)])
def test_an_unrolled_loop_still_recomputes(batch, params, unroll, barriers):
    """Without a loop nothing keeps a compiler from merging the second pass with the first one but
    the barriers that we ask for; in a loop they would only be in the way."""

    def loss(params):
        return jnp.mean(apply_flow(CONFIG, params, *batch, remat="full", unroll=unroll) ** 2)

    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    assert ("optimization_barrier" in text) == barriers


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"remat": "some"}, "remat 'some': expected one of none, dots, full, products, or names"),
        ({"remat": "qkv+some"}, "remat 'qkv.some': expected one of none"),
        ({"unroll": 0}, "unroll must be at least 1, got 0"),
        ({"pad_condition": 0}, "pad_condition must be at least 1"),
    ],
)
def test_unknown_ways_are_refused(params, batch, choices, message):
    with pytest.raises(ValueError, match=message):
        apply_flow(CONFIG, params, *batch, **choices)


@pytest.mark.parametrize(("kept", "calls"), [("full", 4), ("attention", 2)])
def test_flash_attention_is_kept_with_its_statistics(batch, monkeypatch, kept, calls):
    """Lowered for CUDA: with `attention`, no forward pass of cuDNN's attention runs twice."""
    monkeypatch.setattr(attention, "probe", lambda *_: None)
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(version, lambda: 91002)  # asked for without a GPU
    config = dataclasses.replace(CONFIG, model_channels=32)
    params = jax.eval_shape(lambda: init_flow(config, jax.random.key(0), LORA))

    def loss(params):
        ways = {"remat": kept, "attention": "cudnn", "dtype": "bfloat16"}
        return jnp.mean(apply_flow(config, params, *batch, lora=LORA, **ways) ** 2)

    text = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=("cuda",)).as_text()
    # Of self- and of cross-attention; a loop's body is in the text once.
    assert text.count("custom_call @__cudnn$fmhaSoftmax(") == calls
    assert text.count("custom_call @__cudnn$fmhaSoftmaxBackward(") == 2
    # An odd number of keys is filled up and masked: cuDNN's backward pass refuses it.
    assert "tensor<2x6x2x16xbf16>" in text and "tensor<2x5x2x16xbf16>" not in text


def test_operations_inside_flash_attention_are_counted(batch, monkeypatch):
    """Forward as XLA's; backward with one product more, since the scores are made again."""
    monkeypatch.setattr(attention, "probe", lambda *_: None)
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(version, lambda: 91002)
    config = dataclasses.replace(CONFIG, model_channels=32)
    params = random_params(config)
    even = batch[1], jnp.concatenate([batch[2], batch[2][:, :1]], 1)

    def count(transform, backend):
        def loss(params):
            ways = {"attention": backend, "dtype": "bfloat16"}
            return jnp.mean(apply_flow(config, params, batch[0], *even, **ways) ** 2)

        return flops.count(transform(loss), params)

    product = 2 * 4 * config.model_channels * 64 * (64 + 6) * config.num_blocks
    assert count(lambda f: f, "cudnn") == count(lambda f: f, "xla")
    assert count(jax.grad, "cudnn") == count(jax.grad, "xla") + product


def test_samples_of_an_image_share_its_condition(params, batch):
    x, t, cond = batch
    run = functools.partial(jax.jit(apply_flow, static_argnums=0), CONFIG, params)
    assert difference(run(x, t, cond), run(x, t, jnp.repeat(cond, 2, axis=0))) < FORWARD
    with pytest.raises(ValueError, match="4 samples, 0 of them unconditional, do not share 3"):
        run(x, t, jnp.ones((3, 5, 12)))


CONTEXTS = {
    "plain": {},
    "padded": {"pad_condition": 4},
    "split": {"projections": "split", "unroll": 3},
    "joined": {"lora_product": "joined"},
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_context_made_once_is_the_condition(adapted, batch, name):
    """In guided steps too: without a condition every value is a bias, so no attention is needed."""
    x, t, cond = batch
    config = dataclasses.replace(CONFIG, qk_rms_norm_cross=name == "padded")
    full = random_params(config) if name == "padded" else adapted
    adapter = None if name == "padded" else LORA

    def run(params, x, t, cond, ways):
        return apply_flow(config, params, x, t, cond, lora=adapter, **ways)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def both(params):
        doubled, times = jnp.concatenate([x, x]), jnp.concatenate([t, t])
        context = flow_context(config, params, cond, lora=adapter, **CONTEXTS[name])
        zeros = jnp.concatenate([cond, jnp.zeros_like(cond)])
        return (
            run(params, doubled, times, context.with_unconditional(4), CONTEXTS[name]),
            run(params, doubled, times, zeros, {}),
        )

    found, expected = both(full)
    assert difference(found, expected) < FORWARD
    assert difference(found[:4], found[4:]) > 0.01  # the condition matters


def test_guided_sampling_does_no_work_on_the_condition_twice(params, batch):
    """12 steps, 10 of them guided, two samples an image: what `flow_context` leaves out."""
    x, _, cond = batch
    width, tokens, keys, blocks = CONFIG.model_channels, 64, 5, CONFIG.num_blocks

    def draw(cond):
        return sample(functools.partial(apply_flow, CONFIG, params), x, cond, SamplerConfig())

    def with_context(cond):
        return draw(flow_context(CONFIG, params, cond))

    to_kv = 2 * keys * CONFIG.cond_channels * 2 * width  # of an image
    # Without a condition: to_q, to_out and two products a score; to_out of one row instead.
    free = 2 * tokens * width * (2 * width + 2 * keys) * len(x)
    row = 2 * width * width
    saved = (22 - 1) * len(cond) * to_kv + 10 * (free - row)
    assert flops.count(draw, cond) - flops.count(with_context, cond) == blocks * saved
    errors = difference(jax.jit(with_context)(cond), jax.jit(draw)(cond))
    assert errors < TRAJECTORY


def test_bf16_torso_stays_near_fp32_and_returns_the_type_of_x(params, batch):
    exact = jax.jit(apply_flow, static_argnums=0)(CONFIG, params, *batch)
    half = jax.jit(apply_flow, static_argnums=0, static_argnames="dtype")(
        CONFIG, params, *batch, dtype=jnp.bfloat16
    )
    assert half.dtype == jnp.float32
    assert 1e-4 < difference(half, exact) < HALF


def test_bf16_decoder_returns_the_type_of_z():
    config = DecoderConfig(channels=(8, 4), num_res_blocks=1, num_res_blocks_middle=1)
    z = jax.ShapeDtypeStruct((2, 8, 2, 2, 2), jnp.float32)
    params = jax.eval_shape(lambda: init_decoder(config, jax.random.key(0)))
    out = jax.eval_shape(
        lambda params, z: apply_decoder(config, params, z, dtype=jnp.bfloat16), params, z
    )
    assert (out.shape, out.dtype) == ((2, 1, 4, 4, 4), jnp.float32)


def test_attention_choice_without_a_gpu():
    if jax.default_backend() != "cpu":
        pytest.fail("this file is written for the CPU; run it with JAX_PLATFORMS=cpu")
    assert attention.resolve("auto", "bfloat16") == "xla"
    assert attention.resolve("xla", "float32") == "xla"
    with pytest.raises(ValueError, match="attention 'flash': expected auto"):
        attention.resolve("flash", "float32")
    with pytest.raises(ValueError, match="attention 'cudnn' does not work here with bfloat16"):
        attention.resolve("cudnn", "bfloat16")


def test_the_probe_may_be_asked_under_a_trace():
    """The first to ask is a model inside `jit`, `scan` and `checkpoint`; it gets an answer."""
    asked = []

    def block(carry, _):
        asked.append(attention.probe.__wrapped__("xla", "float32"))
        return carry * 2, None

    def loss(x):
        return jax.lax.scan(jax.checkpoint(block), x, None, length=2)[0]

    assert jax.jit(jax.grad(loss))(1.0) == 4.0
    assert asked and set(asked) == {None}


@pytest.mark.gpu
def test_cudnn_attention_equals_xla(batch):
    """Both within bf16's own error of fp32, forward and gradient."""
    config = FlowConfig(4, model_channels=128, cond_channels=32, num_blocks=2, num_heads=2)
    params = random_params(config)
    x, t, cond = batch
    cond = jnp.tile(cond, (1, 1, 3))[..., :32]

    def gradient(backend, dtype):
        def loss(params):
            v = apply_flow(config, params, x, t, cond, attention=backend, dtype=dtype)
            return jnp.mean(v**2)

        return jax.jit(jax.grad(loss))(params)["blocks"]["self_attn"]["to_qkv"]["kernel"]

    exact = gradient("xla", jnp.float32)
    for backend in ("xla", "cudnn"):
        assert difference(gradient(backend, jnp.bfloat16), exact) < HALF
