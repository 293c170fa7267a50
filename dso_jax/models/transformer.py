"""The TRELLIS stage-1 flow transformer: velocities of the structure latents.

Shapes: B batch, C latent channels, R grid edge, L = (R/p)^3 voxel tokens, G images, S condition
tokens, D width. Source of every constant: microsoft/TRELLIS `SparseStructureFlowModel`.

The samples of an image stand side by side: row i of B = G M belongs to image i // M.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from dso_jax.models import attention as attention_backends
from dso_jax.models import norm_kernels, remat
from dso_jax.models.config import PLAIN, Execution, FlowConfig, LoRAConfig
from dso_jax.models.embedding import TimestepEmbedder, patchify, position_embedding, unpatchify
from dso_jax.models.layers import Dtype, Float32LayerNorm, Linear, Mlp, fill, skeleton, stack
from dso_jax.models.multihead import Context, CrossAttention, SelfAttention, Sizes

Gather = Callable[[jax.Array], jax.Array]
UNPROBED = dataclasses.replace(PLAIN, attention="xla")  # runs wherever it is built


class Block(nnx.Module):
    """`ModulatedTransformerCrossBlock`: adaLN self-attention, plain cross-attention, adaLN MLP."""

    def __init__(
        self, config: FlowConfig, lora: LoRAConfig | None, execution: Execution, rngs: nnx.Rngs
    ):
        width, dtype = config.model_channels, execution.dtype
        sizes = Sizes(width, config.num_heads, lora, execution)
        self.norm1 = Float32LayerNorm(width, affine=False, eps=1e-6, rngs=rngs)
        self.self_attn = SelfAttention(sizes, config.qk_rms_norm, rngs)
        self.norm2 = Float32LayerNorm(width, affine=True, eps=1e-6, rngs=rngs)
        self.cross_attn = CrossAttention(
            sizes, config.cond_channels, config.qk_rms_norm_cross, rngs
        )
        self.norm3 = Float32LayerNorm(width, affine=False, eps=1e-6, rngs=rngs)
        self.mlp = Mlp(width, config.mlp_ratio, dtype=dtype, rngs=rngs)
        self.share_mod, self.kernels = config.share_mod, execution.norms == "kernel"
        if not config.share_mod:
            self.adaLN_modulation = modulation(width, dtype, rngs)

    def __call__(self, x: jax.Array, t_emb: jax.Array, context: Context) -> jax.Array:
        """x (B,L,D), t_emb (B,D), or (B,6D) with share_mod, the block's context -> (B,L,D)."""
        mod = t_emb if self.share_mod else self.adaLN_modulation["1"](nnx.silu(t_emb))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(mod[:, None], 6, axis=-1)
        x = x + self.self_attn(self.modulated(self.norm1, x, scale1, shift1)) * gate1
        x = self.cross(checkpoint_name(x, "stream"), context)
        x = checkpoint_name(x, "stream")
        return x + self.mlp(self.modulated(self.norm3, x, scale2, shift2)) * gate2

    def modulated(
        self, norm: Float32LayerNorm, x: jax.Array, scale: jax.Array, shift: jax.Array
    ) -> jax.Array:
        """norm(x) (1 + scale) + shift, with scale and shift (B,1,D)."""
        if self.kernels and norm_kernels.fits(x, x.shape[-1]):
            return norm_kernels.layer_norm(x, scale, shift, eps=norm.epsilon)
        return norm(x) * (1 + scale) + shift

    def cross(self, x: jax.Array, context: Context) -> jax.Array:
        """x plus cross-attention, which needs no attention where there is no condition."""
        if not context.unconditional:
            return x + self.cross_attn(self.norm2(x), context)
        rows = x.shape[0] - context.unconditional
        known = self.cross_attn(self.norm2(x[:rows]), context)
        free = jnp.broadcast_to(self.cross_attn.unconditional(x.dtype), x[rows:].shape)
        return x + jnp.concatenate([known, free])


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
        execution: Execution = UNPROBED,
        rngs: nnx.Rngs,
    ):
        patch, width = config.patch_size, config.model_channels
        self.config, self.execution = config, execution
        self.t_embedder = TimestepEmbedder(width, rngs=rngs)
        if config.share_mod:
            self.adaLN_modulation = modulation(width, jnp.float32, rngs)
        self.pos_emb = nnx.Variable(jnp.asarray(position_embedding(config)))
        fp32: dict[str, Any] = {"dtype": jnp.float32, "rngs": rngs}
        self.input_layer = Linear(config.in_channels * patch**3, width, **fp32)
        self.blocks = stack(lambda r: Block(config, lora, execution, r), config.num_blocks, rngs)
        self.final_norm = Float32LayerNorm(width, affine=False, eps=1e-5, rngs=rngs)
        self.out_layer = Linear(width, config.out_channels * patch**3, zero=True, **fp32)

    def __call__(
        self, x: jax.Array, t: jax.Array, cond: jax.Array | Context, gather: Gather | None = None
    ) -> jax.Array:
        """x (B,C,R,R,R), t (B,) times 1000 -> (B,C_out,R,R,R) in the type of x."""
        dtype = self.execution.dtype
        h = self.input_layer(patchify(x, self.config.patch_size)) + self.pos_emb[...]
        t_emb = self.t_embedder(t)
        if self.config.share_mod:
            t_emb = self.adaLN_modulation["1"](nnx.silu(t_emb))
        h, t_emb = h.astype(dtype), t_emb.astype(dtype)
        ready = isinstance(cond, Context)
        padded = None if ready else self.condition(cond)
        graphdef, layers = nnx.split(self.blocks)

        def body(h: jax.Array, scanned: tuple) -> tuple[jax.Array, None]:
            layer, context = scanned
            layer = layer if gather is None else jax.tree.map(gather, layer)
            block = nnx.merge(graphdef, layer)
            if padded is not None:
                context = block.cross_attn.context(*padded)
            return block(h, t_emb, context), None

        turns = -(-self.config.num_blocks // self.execution.unroll)
        policy = remat.policy(self.execution.remat)
        if gather is not None and policy is None:
            # The backward pass gathers again, or each device would keep all blocks after all.
            policy = remat.all_but_gathered
        if policy is not None:
            # A loop already keeps XLA from undoing the recomputation.
            body = jax.checkpoint(body, policy=policy, prevent_cse=turns == 1)
        unroll = min(self.execution.unroll, self.config.num_blocks)
        h, _ = jax.lax.scan(body, h, (layers, cond if ready else None), unroll=unroll)
        h = self.final_norm(h.astype(x.dtype))
        edge = self.config.resolution // self.config.patch_size
        return unpatchify(self.out_layer(h).astype(x.dtype), edge, self.config.patch_size)

    def condition(self, cond: jax.Array) -> tuple[jax.Array, int]:
        """(G,S,C) in the torso's type, S filled up as `pad_condition` says; and the true S."""
        tokens, multiple = cond.shape[1], self.execution.pad_condition
        if self.execution.attention == "cudnn":
            multiple = math.lcm(multiple, 2)  # its backward pass refuses odd lengths
        fill_up = -tokens % multiple
        cond = cond.astype(self.execution.dtype)
        return jnp.pad(cond, ((0, 0), (0, fill_up), (0, 0))), tokens

    def context(self, cond: jax.Array, gather: Gather | None = None) -> Context:
        """(G,S,C) -> keys and values of all blocks."""
        graphdef, layers = nnx.split(self.blocks.cross_attn)
        padded, tokens = self.condition(cond)

        def body(_: None, layer: nnx.State) -> tuple[None, Context]:
            layer = layer if gather is None else jax.tree.map(gather, layer)
            return None, nnx.merge(graphdef, layer).context(padded, tokens)

        return jax.lax.scan(body, None, layers)[1]


def init_flow(config: FlowConfig, key: jax.Array, lora: LoRAConfig | None = None) -> dict:
    """Fresh fp32 parameters as nested dicts; block leaves are stacked (N, ...)."""
    return nnx.to_pure_dict(
        nnx.split(SparseStructureFlow(config, lora=lora, rngs=nnx.Rngs(key)))[1]
    )


def apply_flow(
    config: FlowConfig,
    params: dict,
    x: Float[Array, "B C R R R"],
    t: Float[Array, " B"],
    cond: Float[Array, "G S D"] | Context,
    *,
    lora: LoRAConfig | None = None,
    execution: Execution = PLAIN,
    gather: Gather | None = None,
    **choices: Any,
) -> Float[Array, "B C R R R"]:
    """Velocity v(x_t, t, cond) with t in [0, 1] (multiplied by 1000 here, upstream by its callers).

    Products of fp32 numbers are fp32 on every device, as torch's are.

    Args:
      params: from `init_flow` or `weight_port`; with LoRA leaves if and only if `lora` is given.
      cond: of G images with B / G samples each, side by side in x; or their `flow_context`.
      execution: how it is carried out.
      gather: for weights spread over devices: makes a block's leaf whole just before its use.
      choices: fields of `execution` to replace, for example `dtype=jnp.bfloat16`.

    Raises:
      ValueError: parameters, rows or choices that do not fit.
    """
    model = _model(config, params, lora, execution, choices)
    images, free = _rows(cond)
    if x.shape[0] <= free or (x.shape[0] - free) % images:
        raise ValueError(
            f"{x.shape[0]} samples, {free} of them unconditional, do not share {images} conditions"
        )
    with jax.default_matmul_precision("highest"):
        return model(x, t * 1000.0, cond, gather)


def flow_context(
    config: FlowConfig,
    params: dict,
    cond: Float[Array, "G S D"],
    *,
    lora: LoRAConfig | None = None,
    execution: Execution = PLAIN,
    gather: Gather | None = None,
    **choices: Any,
) -> Context:
    """What `apply_flow` can take in place of `cond`: computed once for all steps of a sampler.

    For TRELLIS-image-large in bf16 135 MB an image. The arguments are those of `apply_flow`.
    """
    model = _model(config, params, lora, execution, choices)
    with jax.default_matmul_precision("highest"):
        return model.context(cond, gather)


def _rows(cond: jax.Array | Context) -> tuple[int, int]:
    """Number of images, and of unconditional samples."""
    if isinstance(cond, Context):
        return cond.k.shape[1], cond.unconditional
    return cond.shape[0], 0


def _model(
    config: FlowConfig,
    params: dict,
    lora: LoRAConfig | None,
    execution: Execution,
    choices: dict[str, Any],
) -> SparseStructureFlow:
    execution = dataclasses.replace(execution, **choices)
    dtype = jnp.dtype(execution.dtype).name
    backend: Any = attention_backends.resolve(execution.attention, dtype)
    execution = dataclasses.replace(execution, dtype=dtype, attention=backend)
    return fill(_skeleton(config, lora, execution), params)  # type: ignore[return-value]


@functools.cache
def _skeleton(
    config: FlowConfig, lora: LoRAConfig | None, execution: Execution
) -> tuple[nnx.GraphDef, frozenset[str]]:
    return skeleton(
        lambda: SparseStructureFlow(config, lora=lora, execution=execution, rngs=nnx.Rngs(0))
    )
