"""DINOv2: the vision transformer whose features condition the TRELLIS flow.

Shapes: B batch, H x W pixels, h x w patches, L = 1 + registers + h w tokens, D width.
Source of every constant: facebookresearch/dinov2; attribute names are those of its torch hub.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dso_jax.models import attention as attention_backends
from dso_jax.models import bicubic
from dso_jax.models.config import DINOv2Config
from dso_jax.models.layers import (
    Dtype,
    Float32LayerNorm,
    Linear,
    fill,
    skeleton,
    split_heads,
    stack,
)

NORM_EPS = 1e-6


class Attention(nnx.Module):
    """Multi-head self-attention; rows of `qkv` are [q;k;v]."""

    def __init__(self, config: DINOv2Config, backend: str, dtype: Dtype, rngs: nnx.Rngs):
        self.num_heads, self.backend = config.num_heads, backend
        self.qkv = Linear(config.width, 3 * config.width, dtype=dtype, rngs=rngs)
        self.proj = Linear(config.width, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = split_heads(self.qkv(x), 3, self.num_heads)
        out = jax.nn.dot_product_attention(q, k, v, implementation=self.backend)  # type: ignore[arg-type]
        return self.proj(out.reshape(x.shape))


class Mlp(nnx.Module):
    """Linear, GELU (exact, by erf), Linear."""

    def __init__(self, config: DINOv2Config, dtype: Dtype, rngs: nnx.Rngs):
        self.fc1 = Linear(config.width, config.hidden, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(config.hidden, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(nnx.gelu(self.fc1(x), approximate=False))


class SwiGLU(nnx.Module):
    """w3(silu(x w1) * (x w2)), with w1 and w2 in one linear `w12`."""

    def __init__(self, config: DINOv2Config, dtype: Dtype, rngs: nnx.Rngs):
        self.w12 = Linear(config.width, 2 * config.hidden, dtype=dtype, rngs=rngs)
        self.w3 = Linear(config.hidden, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(nnx.silu(gate) * value)


class LayerScale(nnx.Module):
    """A learned factor a channel; the hub's models start it at 1."""

    def __init__(self, width: int):
        self.gamma = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each scaled before its residual sum."""

    def __init__(self, config: DINOv2Config, backend: str, dtype: Dtype, rngs: nnx.Rngs):
        width, feed_forward = config.width, Mlp if config.ffn == "mlp" else SwiGLU
        self.norm1 = Float32LayerNorm(width, affine=True, eps=NORM_EPS, rngs=rngs)
        self.attn = Attention(config, backend, dtype, rngs)
        self.ls1 = LayerScale(width)
        self.norm2 = Float32LayerNorm(width, affine=True, eps=NORM_EPS, rngs=rngs)
        self.mlp = feed_forward(config, dtype, rngs)
        self.ls2 = LayerScale(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nnx.Module):
    """(B,H,W,3) -> (B,h,w,D): one convolution whose stride is its kernel."""

    def __init__(self, config: DINOv2Config, rngs: nnx.Rngs):
        patch = (config.patch_size, config.patch_size)
        # By name, since a convolution does not know the precisions that products may be given.
        highest = jax.lax.Precision.HIGHEST
        self.proj = nnx.Conv(
            3, config.width, patch, strides=patch, padding="VALID", precision=highest, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.proj(images)


class DinoVisionTransformer(nnx.Module):
    """Tokens [CLS, registers, patches] of images."""

    def __init__(
        self,
        config: DINOv2Config,
        *,
        backend: str = "xla",
        dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = config.width
        self.config, self.dtype = config, jnp.dtype(dtype)
        positions = 0.02 * jax.random.normal(rngs.params(), (1, 1 + config.grid**2, width))
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.pos_embed = nnx.Param(positions)
        if config.num_registers:
            self.register_tokens = nnx.Param(jnp.zeros((1, config.num_registers, width)))
        self.mask_token = nnx.Param(jnp.zeros((1, width)))  # for pre-training: unused, but kept
        self.patch_embed = PatchEmbed(config, rngs)
        self.blocks = stack(
            lambda r: Block(config, backend, self.dtype, r), config.num_blocks, rngs
        )
        self.norm = Float32LayerNorm(width, affine=True, eps=NORM_EPS, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B,H,W,3) -> (B,L,D) before the final norm, in the type of the images."""
        graphdef, layers = nnx.split(self.blocks)

        def body(x: jax.Array, layer: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, layer)(x), None

        tokens = self.embed(images).astype(self.dtype)
        return jax.lax.scan(body, tokens, layers)[0].astype(images.dtype)

    def embed(self, images: jax.Array) -> jax.Array:
        """(B,H,W,3) -> (B,L,D): registers come in after the positions, and have none."""
        patches = self.patch_embed(images)
        batch, rows, columns, width = patches.shape
        positions = self.positions(rows, columns)
        cls = self.cls_token[...] + positions[:, :1]
        tokens = [jnp.broadcast_to(cls, (batch, 1, width))]
        if self.config.num_registers:
            registers = self.register_tokens[...]
            tokens.append(jnp.broadcast_to(registers, (batch, *registers.shape[1:])))
        tokens.append(patches.reshape(batch, -1, width) + positions[:, 1:])
        return jnp.concatenate(tokens, axis=1)

    def positions(self, rows: int, columns: int) -> jax.Array:
        """(1, 1 + rows columns, D): the stored embedding, resampled if its grid is another."""
        stored, grid = self.pos_embed[...], self.config.grid
        if (rows, columns) == (grid, grid):
            return stored
        down, across = (
            bicubic.matrix(
                grid,
                size,
                antialias=self.config.interpolate_antialias,
                offset=self.config.interpolate_offset,
            )
            for size in (rows, columns)
        )
        patches = stored[0, 1:].reshape(grid, grid, -1)
        patches = jnp.einsum("yi,xj,ijd->yxd", down, across, patches)
        return jnp.concatenate([stored[:, :1], patches.reshape(1, rows * columns, -1)], axis=1)


def init_dinov2(config: DINOv2Config, key: jax.Array) -> dict:
    """Fresh fp32 parameters as nested dicts; block leaves are stacked (N, ...)."""
    return nnx.to_pure_dict(nnx.split(DinoVisionTransformer(config, rngs=nnx.Rngs(key)))[1])


@functools.cache
def _skeleton(config: DINOv2Config, backend: str, dtype: str) -> tuple[Any, frozenset[str]]:
    return skeleton(
        lambda: DinoVisionTransformer(config, backend=backend, dtype=dtype, rngs=nnx.Rngs(0))
    )


def apply_dinov2(
    config: DINOv2Config,
    params: dict,
    images: Float[Array, "B 3 H W"],
    *,
    normed: bool = False,
    attention: str = "auto",
    dtype: Dtype = jnp.float32,
    precision: str = "highest",
) -> Float[Array, "B L D"]:
    """Features of images: tokens [CLS, registers, patches row by row].

    Args:
      params: from `init_dinov2` or `weight_port`.
      images: fp32, already normalised with ImageNet's mean and deviation; H and W are multiples of
        the patch size.
      normed: after the final norm; otherwise before it (`x_prenorm`, what TRELLIS takes).
      attention: "auto", "xla" or "cudnn".
      dtype: type of the blocks.
      precision: of the blocks' products of fp32 numbers, for `jax.default_matmul_precision`; by
        default they are fp32 on every device, as torch's are.

    Raises:
      ValueError: a size that is not a multiple of the patch size, or parameters that do not fit.
    """
    height, width = images.shape[-2:]
    if height % config.patch_size or width % config.patch_size:
        raise ValueError(
            f"images of {height}x{width} pixels: expected multiples of patch_size "
            f"{config.patch_size}"
        )
    name = jnp.dtype(dtype).name
    backend = attention_backends.resolve(attention, name)
    model: Any = fill(_skeleton(config, backend, name), params)
    with jax.default_matmul_precision(precision):
        tokens = model(jnp.moveaxis(images, 1, -1))
    return model.norm(tokens) if normed else tokens
