"""Kernels of the torso's norms against the same norms as XLA makes them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dso_jax.models import FlowConfig, apply_flow, flow_context, init_flow, norm_kernels
from dso_jax.models.layers import Float32LayerNorm
from dso_jax.models.multihead import MultiHeadRMSNorm
from tests.models.comparison import FORWARD, difference
from tests.models.sizes import random_params

# The same operations in fp32, but for the order of a sum of 64.
ROUNDING = 1e-6
# Of numbers near the largest: a step of bf16 in the norm, and one each by scale and by shift.
HALF = 3 * 2**-8
HEADS, HEAD = 4, 16
SHAPE = 3, 6, HEADS * HEAD  # 6 tokens are no multiple of `norm_kernels.ROWS`


def numbers(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(1, 2, shape), dtype)


def heads_by_xla(x: jax.Array, gamma: jax.Array) -> jax.Array:
    norm = MultiHeadRMSNorm(gamma.shape[0], gamma.shape[1])
    norm.gamma = nnx.Param(gamma)
    return norm(x)


def layer_by_xla(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    norm = Float32LayerNorm(x.shape[-1], affine=False, eps=1e-6, rngs=nnx.Rngs(0))
    return norm(x) * (1 + scale) + shift


def of_heads(dtype: str) -> tuple[jax.Array, jax.Array]:
    return numbers((*SHAPE[:2], HEADS, HEAD), dtype), numbers((HEADS, HEAD), seed=1)


def of_layer(dtype: str) -> tuple[jax.Array, ...]:
    return numbers(SHAPE, dtype), *(numbers((3, 1, SHAPE[2]), dtype, seed) for seed in (1, 2))


@pytest.mark.parametrize(("dtype", "bound"), [("float32", ROUNDING), ("bfloat16", HALF)])
def test_interpreted_kernels_are_the_norms(dtype, bound):
    x, gamma = of_heads(dtype)
    found = norm_kernels.rms_norm(x, gamma, interpret=True)
    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    assert difference(found, heads_by_xla(x, gamma)) < bound
    rows = of_layer(dtype)
    found = norm_kernels.layer_norm(*rows, eps=1e-6, interpret=True)
    assert (found.dtype, found.shape) == (rows[0].dtype, rows[0].shape)
    assert difference(found, layer_by_xla(*rows)) < bound


def test_zeros_and_large_means():
    """A row of zeros has no length; E[x^2] - E[x]^2 would lose the digits behind a large mean."""
    x, gamma = of_heads("bfloat16")
    found = norm_kernels.rms_norm(jnp.zeros_like(x), gamma, interpret=True)
    np.testing.assert_array_equal(found.astype(jnp.float32), 0.0)
    rows = of_layer("float32")
    x = rows[0].at[0, 1].set(0.0).at[1].add(1e4)
    found = norm_kernels.layer_norm(x, *rows[1:], eps=1e-6, interpret=True)
    assert difference(found, layer_by_xla(x, *rows[1:])) < ROUNDING
    np.testing.assert_array_equal(found[0, 1], rows[2][0, 0])


CONFIG = FlowConfig(
    resolution=2,
    model_channels=16,
    cond_channels=12,
    num_blocks=2,
    num_heads=2,
    qk_rms_norm_cross=True,
)


def flow(config: FlowConfig, **choices) -> jax.Array:
    """Velocities of four samples of two images, and of two without a condition."""
    x, cond = numbers((6, 8, 2, 2, 2), seed=3), numbers((2, 5, 12), seed=4)

    @jax.jit
    def run(params):
        context = flow_context(config, params, cond, **choices).with_unconditional(2)
        return apply_flow(config, params, x, jnp.linspace(0.1, 0.9, 6), context, **choices)

    return run(random_params(config))


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """Names of the kernels that are traced; they are interpreted."""
    names: list[str] = []

    def interpreted(name: str, real: Callable, *arguments, **options) -> jax.Array:
        names.append(name)
        return real(*arguments, interpret=True, **options)

    for name in ("rms_norm", "layer_norm"):
        stand_in = functools.partial(interpreted, name, getattr(norm_kernels, name))
        monkeypatch.setattr(norm_kernels, name, stand_in)
    return names


def test_a_flow_with_kernels_is_the_flow(launched):
    plain = flow(CONFIG)
    assert not launched
    assert difference(flow(CONFIG, norms="kernel"), plain) < FORWARD
    # A scanned block: two modulated norms; queries and keys of itself, queries to the condition
    # whose keys are made before.
    assert sorted(launched) == ["layer_norm"] * 2 + ["rms_norm"] * 4


def test_other_widths_are_left_to_xla(launched):
    """Triton wants powers of two: 24 is none; neither are 3 heads of 8."""
    odd = dataclasses.replace(CONFIG, model_channels=24, num_heads=3)
    np.testing.assert_array_equal(flow(odd, norms="kernel"), flow(odd))
    assert not launched
    assert norm_kernels.fits(jnp.ones((1, 1, 8)), 8)
    assert not norm_kernels.fits(jnp.ones((1, 1, 24)), 3, 8)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.usefixtures("described_gpu")
def test_can_be_lowered_for_a_gpu():
    """In a flow of the true width; no GPU is asked."""
    config = FlowConfig(num_blocks=1)
    params = jax.eval_shape(lambda: init_flow(config, jax.random.key(0)))
    shapes = [
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 16, 16, 16), (2,), (1, 5, 1024))
    ]
    ways = {"norms": "kernel", "attention": "xla", "dtype": "bfloat16"}
    run = jax.jit(functools.partial(apply_flow, config, **ways))
    text = run.trace(params, *shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 4


def test_the_probe_says_why_not(caplog):
    if jax.default_backend() != "cpu":
        pytest.fail("this file is written for the CPU; run it with JAX_PLATFORMS=cpu")
    assert "CPU" in (norm_kernels.probe() or "")
    assert norm_kernels.choice() == "xla"
    assert "kernels of norms are not available (ValueError: Only interpret" in caplog.text


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize(("dtype", "bound"), [("float32", ROUNDING), ("bfloat16", HALF)])
def test_kernels_of_a_gpu_are_the_norms(dtype, bound):
    assert norm_kernels.probe() is None
    x, gamma = of_heads(dtype)
    assert difference(norm_kernels.rms_norm(x, gamma), heads_by_xla(x, gamma)) < bound
    rows = of_layer(dtype)
    found = norm_kernels.layer_norm(*rows, eps=1e-6)
    assert difference(found, layer_by_xla(*rows)) < bound
