"""The TRELLIS stage-1 flow transformer: velocities of the structure latents.

Shapes: B batch, C latent channels, R grid edge, L = (R/p)^3 voxel tokens, S condition tokens,
D width. Source of every constant: microsoft/TRELLIS `SparseStructureFlowModel`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dso_jax.models import attention as attention_backends
from dso_jax.models.config import FlowConfig, LoRAConfig
from dso_jax.models.layers import (
    Attention,
    Dtype,
    Float32LayerNorm,
    Linear,
    Mlp,
    fill,
    skeleton,
    stack,
)

Gather = Callable[[jax.Array], jax.Array]
FREQUENCIES = 256  # width of the sinusoidal time embedding
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def position_embedding(config: FlowConfig) -> np.ndarray:
    """(L, D) absolute embedding: [sin, cos] per axis, three axes, zero-padded to D."""
    edge, width = config.resolution // config.patch_size, config.model_channels
    coords = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3)
    freq_dim = width // 3 // 2
    freqs = 1.0 / 10000 ** (np.arange(freq_dim, dtype=np.float32) / freq_dim)
    angles = coords[:, :, None].astype(np.float32) * freqs.astype(np.float32)
    emb = np.concatenate([np.sin(angles), np.cos(angles)], -1).reshape(len(coords), -1)
    return np.pad(emb, ((0, 0), (0, width - emb.shape[1]))).astype(np.float32)


class TimestepEmbedder(nnx.Module):
    """[cos, sin] of t at 128 frequencies, Linear, SiLU, Linear; t is already times 1000."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.mlp = nnx.Dict(
            {
                "0": Linear(FREQUENCIES, width, dtype=jnp.float32, rngs=rngs),
                "2": Linear(width, width, dtype=jnp.float32, rngs=rngs),
            }
        )

    def __call__(self, t: jax.Array) -> jax.Array:
        half = FREQUENCIES // 2
        # In fp32 as upstream, but for exp: XLA's is off by an ulp or two, which 1000 t multiplies.
        exponent = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / half
        freqs = np.exp(exponent.astype(np.float64)).astype(np.float32)
        angles = t.astype(jnp.float32)[:, None] * freqs
        emb = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        return self.mlp["2"](nnx.silu(self.mlp["0"](emb)))


class Block(nnx.Module):
    """`ModulatedTransformerCrossBlock`: adaLN self-attention, plain cross-attention, adaLN MLP."""

    def __init__(
        self,
        config: FlowConfig,
        lora: LoRAConfig | None,
        backend: str,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        width, heads = config.model_channels, config.num_heads
        shared: dict[str, Any] = {
            "lora": lora,
            "backend": backend,
            "dtype": dtype,
            "rngs": rngs,
        }
        self.norm1 = Float32LayerNorm(width, affine=False, eps=1e-6, rngs=rngs)
        self.self_attn = Attention(width, heads, qk_rms_norm=config.qk_rms_norm, **shared)
        self.norm2 = Float32LayerNorm(width, affine=True, eps=1e-6, rngs=rngs)
        self.cross_attn = Attention(
            width,
            heads,
            context_width=config.cond_channels,
            qk_rms_norm=config.qk_rms_norm_cross,
            **shared,
        )
        self.norm3 = Float32LayerNorm(width, affine=False, eps=1e-6, rngs=rngs)
        self.mlp = Mlp(width, config.mlp_ratio, dtype=dtype, rngs=rngs)
        self.share_mod = config.share_mod
        if not config.share_mod:
            self.adaLN_modulation = modulation(width, dtype, rngs)

    def __call__(self, x: jax.Array, t_emb: jax.Array, cond: jax.Array) -> jax.Array:
        """x (B,L,D), t_emb (B,D), or (B,6D) with share_mod, cond (B,S,D') -> (B,L,D)."""
        mod = t_emb if self.share_mod else self.adaLN_modulation["1"](nnx.silu(t_emb))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(mod[:, None], 6, axis=-1)
        x = x + self.self_attn(self.norm1(x) * (1 + scale1) + shift1) * gate1
        x = x + self.cross_attn(self.norm2(x), cond)
        return x + self.mlp(self.norm3(x) * (1 + scale2) + shift2) * gate2


def modulation(width: int, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Dict:
    """The linear behind adaLN, upstream's `adaLN_modulation.1`; starts at zero."""
    return nnx.Dict({"1": Linear(width, 6 * width, dtype=dtype, zero=True, rngs=rngs)})


class SparseStructureFlow(nnx.Module):
    """v(x_t, t, cond) on the dense latent grid."""

    def __init__(
        self,
        config: FlowConfig,
        *,
        lora: LoRAConfig | None = None,
        remat: str = "none",
        backend: str = "xla",
        dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        patch, width = config.patch_size, config.model_channels
        self.config, self.remat, self.dtype = config, remat, jnp.dtype(dtype)
        self.t_embedder = TimestepEmbedder(width, rngs=rngs)
        if config.share_mod:
            self.adaLN_modulation = modulation(width, jnp.float32, rngs)
        self.pos_emb = nnx.Variable(jnp.asarray(position_embedding(config)))
        fp32: dict[str, Any] = {"dtype": jnp.float32, "rngs": rngs}
        self.input_layer = Linear(config.in_channels * patch**3, width, **fp32)
        self.blocks = stack(
            lambda r: Block(config, lora, backend, self.dtype, r), config.num_blocks, rngs
        )
        self.final_norm = Float32LayerNorm(width, affine=False, eps=1e-5, rngs=rngs)
        self.out_layer = Linear(width, config.out_channels * patch**3, zero=True, **fp32)

    def __call__(
        self, x: jax.Array, t: jax.Array, cond: jax.Array, gather: Gather | None = None
    ) -> jax.Array:
        """x (B,C,R,R,R), t (B,) times 1000, cond (B,S,D') -> (B,C_out,R,R,R) in the type of x."""
        h = self.input_layer(patchify(x, self.config.patch_size)) + self.pos_emb[...]
        t_emb = self.t_embedder(t)
        if self.config.share_mod:
            t_emb = self.adaLN_modulation["1"](nnx.silu(t_emb))
        h, t_emb, cond = (a.astype(self.dtype) for a in (h, t_emb, cond))

        graphdef, layers = nnx.split(self.blocks)

        def body(h: jax.Array, layer: nnx.State) -> tuple[jax.Array, None]:
            layer = layer if gather is None else jax.tree.map(gather, layer)
            return nnx.merge(graphdef, layer)(h, t_emb, cond), None

        policy = REMAT_POLICIES[self.remat]
        if gather is not None and policy is None:
            # The backward pass gathers again, or each device would keep all blocks after all.
            policy = _save_all_but_gathered
        if policy is not None:
            # The scan already keeps XLA from undoing the recomputation.
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        h, _ = jax.lax.scan(body, h, layers)
        h = self.final_norm(h.astype(x.dtype))
        edge = self.config.resolution // self.config.patch_size
        return unpatchify(self.out_layer(h).astype(x.dtype), edge, self.config.patch_size)


def _save_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """Remat policy: what `jax.lax.with_sharding_constraint` gives is made again."""
    return primitive.name != "sharding_constraint"


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """(B,C,R,R,R) -> (B, (R/p)^3, C p^3): tokens x-major, channels before patch offsets."""
    batch, channels, edge = x.shape[:3]
    n = edge // patch
    x = x.reshape(batch, channels, n, patch, n, patch, n, patch)
    return x.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, n**3, channels * patch**3)


def unpatchify(h: jax.Array, n: int, patch: int) -> jax.Array:
    """(B, n^3, C p^3) -> (B,C,n p,n p,n p), the inverse of `patchify`."""
    h = h.reshape(h.shape[0], n, n, n, -1, patch, patch, patch)
    return h.transpose(0, 4, 1, 5, 2, 6, 3, 7).reshape(
        h.shape[0], -1, n * patch, n * patch, n * patch
    )


def init_flow(config: FlowConfig, key: jax.Array, lora: LoRAConfig | None = None) -> dict:
    """Fresh fp32 parameters as nested dicts; block leaves are stacked (N, ...)."""
    return nnx.to_pure_dict(
        nnx.split(SparseStructureFlow(config, lora=lora, rngs=nnx.Rngs(key)))[1]
    )


@functools.cache
def _skeleton(config, lora, remat, backend, dtype) -> tuple[nnx.GraphDef, frozenset[str]]:
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat {remat!r}: expected one of {', '.join(REMAT_POLICIES)}")
    options = {"lora": lora, "remat": remat, "backend": backend, "dtype": dtype}
    return skeleton(lambda: SparseStructureFlow(config, **options, rngs=nnx.Rngs(0)))


def apply_flow(
    config: FlowConfig,
    params: dict,
    x: Float[Array, "B C R R R"],
    t: Float[Array, " B"],
    cond: Float[Array, "B S D"],
    *,
    lora: LoRAConfig | None = None,
    remat: str = "none",
    attention: str = "auto",
    dtype: Dtype = jnp.float32,
    gather: Gather | None = None,
) -> Float[Array, "B C R R R"]:
    """Velocity v(x_t, t, cond) with t in [0, 1] (multiplied by 1000 here, upstream by its callers).

    Args:
      params: from `init_flow` or `weight_port`; with LoRA leaves if and only if `lora` is given.
      remat: what the backward pass recomputes in each block: "none", "dots" or "full".
      attention: "auto", "xla" or "cudnn".
      dtype: type of the transformer's torso; input and output layers and norms stay fp32.
        Products of fp32 numbers are fp32 on every device, as torch's are.
      gather: for weights spread over devices: makes a block's leaf whole just before its use.
    """
    name = jnp.dtype(dtype).name
    backend = attention_backends.resolve(attention, name)
    model = fill(_skeleton(config, lora, remat, backend, name), params)
    with jax.default_matmul_precision("highest"):
        return model(x, t * 1000.0, cond, gather)
