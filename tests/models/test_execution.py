"""Options that change how the model runs but not what it computes: remat, attention, types."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dso_jax.models import FlowConfig, apply_decoder, apply_flow, attention, init_flow
from dso_jax.models.config import DecoderConfig
from dso_jax.models.structure_vae import init_decoder
from tests.models.comparison import FAST_COMPILE, FORWARD, difference

CONFIG = FlowConfig(resolution=4, model_channels=24, cond_channels=12, num_blocks=3, num_heads=2)
# A torso in bf16 has a relative step of 8e-3 and adds some of them over a few layers.
HALF = 5e-2


@pytest.fixture(scope="module")
def params():
    """Random in every leaf: the initialisation has layers of zeros, which hide faults."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_flow(CONFIG, jax.random.key(0)))
    return jax.tree.map(
        lambda s: jnp.float32(rng.normal(size=s.shape) * s.shape[-1] ** -0.5), shapes
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    x, cond = rng.normal(size=(2, 8, 4, 4, 4)), rng.normal(size=(2, 5, 12))
    return jnp.float32(x), jnp.float32([0.1, 0.6]), jnp.float32(cond)


def compiled(params, batch, remat):
    def loss(mlp):
        adapted = {**params, "blocks": {**params["blocks"], "mlp": mlp}}
        return jnp.mean(apply_flow(CONFIG, adapted, *batch, remat=remat) ** 2)

    return (
        jax.jit(jax.value_and_grad(loss))
        .lower(params["blocks"]["mlp"])
        .compile(compiler_options=FAST_COMPILE)
    )


def test_remat_changes_memory_not_values(params, batch):
    programs = {policy: compiled(params, batch, policy) for policy in ("none", "dots", "full")}
    trained = params["blocks"]["mlp"]
    value, gradient = programs["none"](trained)
    for policy in ("dots", "full"):
        other_value, other_gradient = programs[policy](trained)
        np.testing.assert_allclose(other_value, value, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(other_gradient), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(a, b, atol=FORWARD * float(jnp.abs(b).max()) + 1e-9)
    memory = {}
    for policy, program in programs.items():
        analysis = program.memory_analysis()
        assert analysis is not None
        memory[policy] = analysis.temp_size_in_bytes
    assert memory["full"] < memory["dots"] < memory["none"]


def test_unknown_remat_is_refused(params, batch):
    with pytest.raises(ValueError, match="remat 'some': expected one of none, dots, full"):
        apply_flow(CONFIG, params, *batch, remat="some")


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


@pytest.mark.gpu
def test_cudnn_attention_equals_xla(params, batch):
    """Both within bf16's own error of fp32, forward and gradient."""
    config = FlowConfig(4, model_channels=128, cond_channels=32, num_blocks=2, num_heads=2)
    params = jax.jit(lambda key: init_flow(config, key))(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.02, params)
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
