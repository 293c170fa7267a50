"""TRELLIS's multi-head attention, and the condition's keys and values that samples share.

Shapes: B samples, G images (B = G M + U: M samples an image side by side, then U unconditional
ones), L query tokens, S condition tokens, H heads, d head width, D width, N stacked blocks.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from dso_jax.models import norm_kernels
from dso_jax.models.attention import attend
from dso_jax.models.config import Execution, LoRAConfig
from dso_jax.models.layers import Linear, split_heads, unit_heads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Keys and values of G images in every block; made once, used by all steps and samples.

    Attributes:
      k, v: of the condition.
      tokens: how many of the S count; the others are padding.
      unconditional: how many of the last samples of a batch have no condition, that is, zeros.
    """

    k: Float[Array, "*N G S H d"]
    v: Float[Array, "*N G S H d"]
    tokens: int = dataclasses.field(metadata={"static": True})
    unconditional: int = dataclasses.field(default=0, metadata={"static": True})

    def with_unconditional(self, rows: int) -> Context:
        """The same for a batch whose last `rows` samples have no condition."""
        return dataclasses.replace(self, unconditional=rows)


class MultiHeadRMSNorm(nnx.Module):
    """x / max(|x|, 1e-12) * gamma * sqrt(d) a head, in fp32: unit length, not unit mean square."""

    def __init__(self, num_heads: int, head_dim: int, kernel: bool = False):
        self.gamma = nnx.Param(jnp.ones((num_heads, head_dim)))
        self.kernel = kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kernel and norm_kernels.fits(x, *x.shape[2:]):
            return norm_kernels.rms_norm(x, self.gamma[...])
        return unit_heads(x, self.gamma[...])


class Sizes(NamedTuple):
    """What self- and cross-attention of a block have in common."""

    width: int
    heads: int
    lora: LoRAConfig | None
    execution: Execution


class Attention(nnx.Module):
    """What self- and cross-attention share: heads, and norms of queries and keys."""

    def __init__(self, sizes: Sizes, qk_rms_norm: bool):
        self.sizes, self.has_norm = sizes, qk_rms_norm
        if qk_rms_norm:
            shape = sizes.heads, sizes.width // sizes.heads
            kernel = sizes.execution.norms == "kernel"
            self.q_rms_norm = MultiHeadRMSNorm(*shape, kernel)
            self.k_rms_norm = MultiHeadRMSNorm(*shape, kernel)

    def linear(self, name: str, fan_in: int, fan_out: int, rngs: nnx.Rngs) -> Linear:
        lora, execution = self.sizes.lora, self.sizes.execution
        adapt = lora if lora and name in lora.targets else None
        joined = execution.lora_product == "joined"
        return Linear(fan_in, fan_out, dtype=execution.dtype, lora=adapt, joined=joined, rngs=rngs)

    def project(self, linear: Linear, x: jax.Array, parts: int, name: str) -> list[jax.Array]:
        """(B,L,D) -> `parts` arrays (B,L,H,d), each a block of the linear's columns."""
        heads = self.sizes.heads
        if self.sizes.execution.projections == "split":
            arrays = [checkpoint_name(a, name) for a in linear.parts(x, parts)]
            return [a.reshape(*a.shape[:2], heads, -1) for a in arrays]
        return split_heads(checkpoint_name(linear(x), name), parts, heads)

    def normed(self, array: jax.Array, of: str) -> jax.Array:
        """Queries ("q") or keys ("k"), under their norm where the model has one."""
        return getattr(self, f"{of}_rms_norm")(array) if self.has_norm else array


class SelfAttention(Attention):
    """Attention of the voxel tokens among themselves, with one linear `to_qkv`."""

    def __init__(self, sizes: Sizes, qk_rms_norm: bool, rngs: nnx.Rngs):
        super().__init__(sizes, qk_rms_norm)
        self.to_qkv = self.linear("to_qkv", sizes.width, 3 * sizes.width, rngs)
        self.to_out = self.linear("to_out", sizes.width, sizes.width, rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        q, k, v = self.project(self.to_qkv, x, 3, "qkv")
        out = attend(self.normed(q, "q"), self.normed(k, "k"), v, self.sizes.execution.attention)
        return self.to_out(out.reshape(x.shape))


class CrossAttention(Attention):
    """Attention to the condition, with linears `to_q` and `to_kv`."""

    def __init__(self, sizes: Sizes, cond_width: int, qk_rms_norm: bool, rngs: nnx.Rngs):
        super().__init__(sizes, qk_rms_norm)
        self.to_q = self.linear("to_q", sizes.width, sizes.width, rngs)
        self.to_kv = self.linear("to_kv", cond_width, 2 * sizes.width, rngs)
        self.to_out = self.linear("to_out", sizes.width, sizes.width, rngs)

    def context(self, cond: Float[Array, "G S C"], tokens: int) -> Context:
        """Keys and values of the condition, of which the first `tokens` count."""
        k, v = self.project(self.to_kv, cond, 2, "context")
        return Context(self.normed(k, "k"), v, tokens)

    def __call__(self, x: Float[Array, "B L D"], context: Context) -> Float[Array, "B L D"]:
        """`x` without the unconditional samples; the samples of an image are one long query."""
        (q,) = self.project(self.to_q, x, 1, "qkv")
        q = self.normed(q, "q").reshape(context.k.shape[0], -1, *q.shape[2:])
        backend = self.sizes.execution.attention
        out = attend(q, context.k, context.v, backend, context.tokens)
        return self.to_out(out.reshape(x.shape))

    def unconditional(self, dtype: jnp.dtype) -> Float[Array, "1 1 D"]:
        """What a condition of zeros gives, for any x: all its values are the bias of `to_kv`."""
        bias = self.to_kv.bias
        assert bias is not None
        return self.to_out(bias[...][None, None, self.sizes.width :].astype(dtype))
