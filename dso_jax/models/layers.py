"""Layers the TRELLIS models share: linears with a LoRA branch, norms, attention, stacking.

Shapes: B batch, L query tokens, S key tokens, H heads, D width, R LoRA rank, N stacked blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from dso_jax.models.config import LoRAConfig

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
        zero: bool = False,
    ):
        init = nnx.initializers.zeros if zero else nnx.initializers.xavier_uniform()
        super().__init__(in_features, out_features, dtype=dtype, kernel_init=init, rngs=rngs)
        self.lora_scale = lora.scale if lora else 0.0
        if lora:
            a, b = init_lora(rngs.params(), (in_features, out_features), lora.rank)
            self.lora_A, self.lora_B = nnx.Param(a), nnx.Param(b)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        if self.lora_scale:
            a, b = (w[...].astype(y.dtype) for w in (self.lora_A, self.lora_B))
            y = y + ((x.astype(y.dtype) @ a) @ b) * self.lora_scale
        return y


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
        return self.mlp["2"](nnx.gelu(self.mlp["0"](x), approximate=True))


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


class MultiHeadRMSNorm(nnx.Module):
    """x / max(|x|, 1e-12) * gamma * sqrt(d) a head, in fp32: unit length, not unit mean square."""

    def __init__(self, num_heads: int, head_dim: int):
        self.gamma = nnx.Param(jnp.ones((num_heads, head_dim)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        # rsqrt of the clamped square keeps the gradient finite at x = 0.
        inverse = jax.lax.rsqrt(jnp.maximum(jnp.sum(x32**2, -1, keepdims=True), 1e-24))
        return (x32 * inverse * self.gamma[...] * x.shape[-1] ** 0.5).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention: self (one `to_qkv`) or cross (`to_q`, and `to_kv` of the condition)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        context_width: int | None = None,
        qk_rms_norm: bool,
        lora: LoRAConfig | None,
        backend: str,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        def linear(name: str, fan_in: int, fan_out: int) -> Linear:
            adapt = lora if lora and name in lora.targets else None
            return Linear(fan_in, fan_out, dtype=dtype, lora=adapt, rngs=rngs)

        self.num_heads, self.backend, self.cross = num_heads, backend, context_width is not None
        if context_width is None:
            self.to_qkv = linear("to_qkv", width, 3 * width)
        else:
            self.to_q = linear("to_q", width, width)
            self.to_kv = linear("to_kv", context_width, 2 * width)
        self.has_norm = qk_rms_norm
        if qk_rms_norm:
            self.q_rms_norm = MultiHeadRMSNorm(num_heads, width // num_heads)
            self.k_rms_norm = MultiHeadRMSNorm(num_heads, width // num_heads)
        self.to_out = linear("to_out", width, width)

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """x (B,L,D), context (B,S,D') -> (B,L,D)."""
        if self.cross:
            assert context is not None
            (q,) = split_heads(self.to_q(x), 1, self.num_heads)
            k, v = split_heads(self.to_kv(context), 2, self.num_heads)
        else:
            q, k, v = split_heads(self.to_qkv(x), 3, self.num_heads)
        if self.has_norm:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        out = jax.nn.dot_product_attention(q, k, v, implementation=self.backend)  # type: ignore[arg-type]
        return self.to_out(out.reshape(x.shape))


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
