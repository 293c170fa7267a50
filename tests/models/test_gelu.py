"""GELU: JAX's own value, and a derivative that keeps nothing but the input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dso_jax.models.gelu import gelu


def plain(x):
    return nnx.gelu(x, approximate=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_value_is_jax_own(dtype):
    x = jnp.linspace(-8, 8, 4001, dtype=dtype)
    np.testing.assert_array_equal(gelu(x), plain(x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_derivative_is_nearer_to_the_true_one(dtype):
    """Than JAX's, whose tanh and products are rounded to sixteen bits on the way."""
    x = jnp.linspace(-6, 6, 4001, dtype=dtype)
    true = jax.grad(lambda x: plain(x).sum())(x.astype(jnp.float32))
    mine, theirs = (jax.grad(lambda x, f=f: f(x).sum())(x) for f in (gelu, plain))
    assert mine.dtype == x.dtype
    errors = [float(jnp.abs(d.astype(jnp.float32) - true).max()) for d in (mine, theirs)]
    assert errors[0] <= float(jnp.finfo(dtype).eps) < errors[1]


def test_in_fp32_nothing_is_ours():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_array_equal(
        jax.grad(lambda x: gelu(x).sum())(x), jax.grad(lambda x: plain(x).sum())(x)
    )


def test_the_backward_pass_keeps_one_array():
    x = jnp.ones((4, 8), jnp.bfloat16)
    _, pull = jax.vjp(gelu, x)
    assert [leaf.shape for leaf in jax.tree.leaves(pull)] == [(4, 8)]
    _, pull = jax.vjp(plain, x)
    assert len([leaf for leaf in jax.tree.leaves(pull) if leaf.shape == (4, 8)]) > 1
