"""Layers the TRELLIS models share: linears with a LoRA branch, norms, stacking.

Shapes: B batch, L tokens, H heads, D width, R LoRA rank, N stacked blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.ad_checkpoint import checkpoint_name

from dso_jax.models.config import LoRAConfig
from dso_jax.models.gelu import gelu

Dtype = jnp.dtype | type | str
M = TypeVar("M", bound=nnx.Module)


def init_lora(key: jax.Array, kernel: tuple[int, ...], rank: int) -> tuple[jax.Array, jax.Array]:
    """Fresh fp32 (A, B) for a kernel of shape (..., in, out), as PEFT starts them.

    A is kaiming-uniform with a = sqrt 5, that is U(-1/sqrt(in), 1/sqrt(in)), and B zero, so that a
    fresh adapter leaves the base unchanged to the bit.
    """
    *lead, fan_in, fan_out = kernel
    bound = fan_in**-0.5
    a = jax.random.uniform(key, (*lead, fan_in, rank), minval=-bound, maxval=bound)
    return a, jnp.zeros((*lead, rank, fan_out))


class Linear(nnx.Linear):
    """`nnx.Linear` that adds (alpha / rank) (x A) B when it has the leaves `lora_A` and `lora_B`.

    A and B are fp32 masters, cast to the compute dtype at use; see `init_lora`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: Dtype,
        rngs: nnx.Rngs,
        lora: LoRAConfig | None = None,
        joined: bool = False,
        zero: bool = False,
    ):
        init = nnx.initializers.zeros if zero else nnx.initializers.xavier_uniform()
        super().__init__(in_features, out_features, dtype=dtype, kernel_init=init, rngs=rngs)
        self.lora_scale, self.joined = lora.scale if lora else 0.0, joined
        if lora:
            a, b = init_lora(rngs.params(), (in_features, out_features), lora.rank)
            self.lora_A, self.lora_B = nnx.Param(a), nnx.Param(b)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._joined(x) if self.joined and self.lora_scale else self.parts(x, 1)[0]

    def parts(self, x: jax.Array, count: int) -> list[jax.Array]:
        """The output's `count` blocks of columns, each from a product of its own."""
        assert self.bias is not None
        kernel, bias, x = (jnp.asarray(p, self.dtype) for p in (self.kernel, self.bias, x))
        width = self.out_features // count
        blocks = [slice(i * width, (i + 1) * width) for i in range(count)]
        y = [x @ kernel[:, block] + bias[block] for block in blocks]
        if self.lora_scale:
            low = checkpoint_name(x @ jnp.asarray(self.lora_A, self.dtype), "lora")
            b = self._scaled_b()
            y = [y + low @ b[:, block] for y, block in zip(y, blocks, strict=True)]
        return y

    def _joined(self, x: jax.Array) -> jax.Array:
        """As `parts(x, 1)`, with x [W A] in one product, so that x is read once."""
        assert self.bias is not None
        leaves = (self.kernel, self.bias, self.lora_A, x)
        kernel, bias, a, x = (jnp.asarray(leaf, self.dtype) for leaf in leaves)
        y, low = jnp.split(x @ jnp.concatenate([kernel, a], 1), [self.out_features], -1)
        return y + bias + checkpoint_name(low, "lora") @ self._scaled_b()

    def _scaled_b(self) -> jax.Array:
        """(alpha / rank) B: scaling the output would be a pass over it, here and backward."""
        return jnp.asarray(self.lora_B[...] * self.lora_scale, self.dtype)


class Mlp(nnx.Module):
    """Linear, GELU (tanh approximation), Linear; upstream's names `mlp.0` and `mlp.2`."""

    def __init__(self, width: int, ratio: float, *, dtype: Dtype, rngs: nnx.Rngs):
        hidden = int(width * ratio)
        self.mlp = nnx.Dict(
            {
                "0": Linear(width, hidden, dtype=dtype, rngs=rngs),
                "2": Linear(hidden, width, dtype=dtype, rngs=rngs),
            }
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = checkpoint_name(self.mlp["0"](x), "mlp")
        return self.mlp["2"](gelu(hidden))


class Float32LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis in fp32, cast back to the type of its input."""

    def __init__(self, width: int, *, affine: bool, eps: float, rngs: nnx.Rngs):
        super().__init__(
            width,
            epsilon=eps,
            use_bias=affine,
            use_scale=affine,
            use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits that torch keeps
            dtype=jnp.float32,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


def unit_heads(x: jax.Array, gamma: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-12) * gamma * sqrt(d) over the last axis, in fp32, in the type of x."""
    x32 = x.astype(jnp.float32)
    # rsqrt of the clamped square keeps the gradient finite at x = 0.
    inverse = jax.lax.rsqrt(jnp.maximum(jnp.sum(x32**2, -1, keepdims=True), 1e-24))
    return (x32 * inverse * gamma * x.shape[-1] ** 0.5).astype(x.dtype)


def split_heads(x: jax.Array, parts: int, num_heads: int) -> list[jax.Array]:
    """(B,L,parts*H*d) -> parts arrays (B,L,H,d): rows of the fused linears are [q;k;v]."""
    split = x.reshape(*x.shape[:2], parts, num_heads, -1)
    return [split[:, :, i] for i in range(parts)]


def stack(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """`count` modules as one whose leaves have a leading axis (N, ...), ready for `lax.scan`."""
    graphdef = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]
    state = jax.vmap(lambda key: nnx.split(make(nnx.Rngs(key)))[1])(
        jax.random.split(rngs.params(), count)
    )
    return nnx.merge(graphdef, state)


def skeleton(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, frozenset[str]]:
    """A module's structure and the paths of its leaves ("a/b/c"), without allocating it."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return graphdef, frozenset(_paths(nnx.to_pure_dict(state)))


def fill(model: tuple[nnx.GraphDef, frozenset[str]], params: dict) -> nnx.Module:
    """The module of a `skeleton` with `params` as its leaves.

    `nnx.merge` alone pairs the leaves of a plain tree by their order, whatever they are called.

    Raises:
      ValueError: names the leaves that are missing or left over.
    """
    graphdef, expected = model
    given = set(_paths(params))
    if given != expected:
        parts = {"missing": expected - given, "unexpected": given - expected}
        text = "; ".join(f"{kind} {', '.join(sorted(n))}" for kind, n in parts.items() if n)
        raise ValueError(f"the parameters do not fit the model: {text}")
    return nnx.merge(graphdef, params)


def _paths(tree: dict) -> Iterable[str]:
    return traverse_util.flatten_dict(tree, sep="/")
