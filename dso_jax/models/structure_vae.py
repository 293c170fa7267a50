"""The TRELLIS structure VAE: occupancy 64^3 <-> latents (8,16,16,16), as two convolution towers.

Shapes: B batch, C channels, R grid edge. Convolutions run channel-last inside; the public
boundary is channel-first. Source: microsoft/TRELLIS `SparseStructureEncoder` / `Decoder`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dso_jax.models.config import DecoderConfig, EncoderConfig
from dso_jax.models.layers import Dtype, Float32LayerNorm, fill, skeleton

EPS = 1e-5


def conv(
    fan_in: int,
    fan_out: int,
    *,
    dtype: Dtype,
    rngs: nnx.Rngs,
    kernel: int = 3,
    stride: int = 1,
    zero: bool = False,
):
    """Conv3d with torch's padding: 1 for a 3^3 kernel, 0 for the 2^3 stride-2 one and for 1^3."""
    return nnx.Conv(
        fan_in,
        fan_out,
        (kernel,) * 3,
        strides=(stride,) * 3,
        padding="SAME" if kernel == 3 else "VALID",
        dtype=dtype,
        kernel_init=nnx.initializers.zeros if zero else nnx.initializers.lecun_normal(),
        rngs=rngs,
    )


class ResBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv (starts at zero), plus the skip."""

    def __init__(self, fan_in: int, fan_out: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.norm1 = Float32LayerNorm(fan_in, affine=True, eps=EPS, rngs=rngs)
        self.norm2 = Float32LayerNorm(fan_out, affine=True, eps=EPS, rngs=rngs)
        self.conv1 = conv(fan_in, fan_out, dtype=dtype, rngs=rngs)
        self.conv2 = conv(fan_out, fan_out, dtype=dtype, zero=True, rngs=rngs)
        self.has_skip = fan_in != fan_out
        if self.has_skip:
            self.skip_connection = conv(fan_in, fan_out, kernel=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h)))
        return h + (self.skip_connection(x) if self.has_skip else x)


class Downsample(nnx.Module):
    """Convolution of kernel 2 and stride 2."""

    def __init__(self, fan_in: int, fan_out: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = conv(fan_in, fan_out, kernel=2, stride=2, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample(nnx.Module):
    """Convolution to 8 x the width, then a pixel shuffle that doubles the grid."""

    def __init__(self, fan_in: int, fan_out: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.conv = conv(fan_in, fan_out * 8, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return pixel_shuffle(self.conv(x))


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """(B,R,R,R,8C) -> (B,2R,2R,2R,C); channel c*8 + 4dx + 2dy + dz goes to offset (dx,dy,dz)."""
    batch, edge = x.shape[:2]
    x = x.reshape(batch, edge, edge, edge, -1, 2, 2, 2).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, 2 * edge, 2 * edge, 2 * edge, -1)


def _tower(
    channels: tuple[int, ...], num_res_blocks: int, resample: type, dtype: Dtype, rngs: nnx.Rngs
) -> nnx.Dict:
    """Residual blocks of every level with a resampling between levels, numbered as upstream."""
    layers: list[nnx.Module] = []
    for level, width in enumerate(channels):
        layers += [ResBlock(width, width, dtype=dtype, rngs=rngs) for _ in range(num_res_blocks)]
        if level + 1 < len(channels):
            layers.append(resample(width, channels[level + 1], dtype=dtype, rngs=rngs))
    return nnx.Dict({str(i): layer for i, layer in enumerate(layers)})


def _middle(width: int, count: int, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Dict:
    return nnx.Dict({str(i): ResBlock(width, width, dtype=dtype, rngs=rngs) for i in range(count)})


def _head(width: int, fan_out: int, rngs: nnx.Rngs) -> nnx.Dict:
    """norm, SiLU (upstream's nameless entry 1), conv; fp32."""
    return nnx.Dict(
        {
            "0": Float32LayerNorm(width, affine=True, eps=EPS, rngs=rngs),
            "2": conv(width, fan_out, dtype=jnp.float32, rngs=rngs),
        }
    )


def _run(layers: nnx.Dict, h: jax.Array) -> jax.Array:
    for i in range(len(layers)):
        h = layers[str(i)](h)
    return h


class SparseStructureDecoder(nnx.Module):
    """Latents (B,r,r,r,C) -> occupancy logits (B,R,R,R,1), R = r 2^(levels-1)."""

    def __init__(self, config: DecoderConfig, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs):
        first, last = config.channels[0], config.channels[-1]
        self.dtype = jnp.dtype(dtype)
        self.input_layer = conv(config.latent_channels, first, dtype=jnp.float32, rngs=rngs)
        self.middle_block = _middle(first, config.num_res_blocks_middle, self.dtype, rngs)
        self.blocks = _tower(config.channels, config.num_res_blocks, Upsample, self.dtype, rngs)
        self.out_layer = _head(last, config.out_channels, rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        h = self.input_layer(z).astype(self.dtype)
        h = _run(self.blocks, _run(self.middle_block, h)).astype(z.dtype)
        return self.out_layer["2"](nnx.silu(self.out_layer["0"](h)))


class SparseStructureEncoder(nnx.Module):
    """Occupancy (B,R,R,R,1) -> [mean, log-variance] (B,r,r,r,2C)."""

    def __init__(self, config: EncoderConfig, *, dtype: Dtype = jnp.float32, rngs: nnx.Rngs):
        first, last = config.channels[0], config.channels[-1]
        self.dtype = jnp.dtype(dtype)
        self.input_layer = conv(config.in_channels, first, dtype=jnp.float32, rngs=rngs)
        self.blocks = _tower(config.channels, config.num_res_blocks, Downsample, self.dtype, rngs)
        self.middle_block = _middle(last, config.num_res_blocks_middle, self.dtype, rngs)
        self.out_layer = _head(last, 2 * config.latent_channels, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.input_layer(x).astype(self.dtype)
        h = _run(self.middle_block, _run(self.blocks, h)).astype(x.dtype)
        return self.out_layer["2"](nnx.silu(self.out_layer["0"](h)))


_CLASSES = {DecoderConfig: SparseStructureDecoder, EncoderConfig: SparseStructureEncoder}


@functools.cache
def _skeleton(
    config: DecoderConfig | EncoderConfig, dtype: str
) -> tuple[nnx.GraphDef, frozenset[str]]:
    return skeleton(lambda: _CLASSES[type(config)](config, dtype=dtype, rngs=nnx.Rngs(0)))


def _init(config: DecoderConfig | EncoderConfig, key: jax.Array) -> dict:
    return nnx.to_pure_dict(nnx.split(_CLASSES[type(config)](config, rngs=nnx.Rngs(key)))[1])


def _apply(config, params: dict, x: jax.Array, dtype: Dtype) -> jax.Array:
    model = fill(_skeleton(config, jnp.dtype(dtype).name), params)
    with jax.default_matmul_precision("highest"):  # fp32 products, as in the flow
        return jnp.moveaxis(model(jnp.moveaxis(x, 1, -1)), -1, 1)


def init_decoder(config: DecoderConfig, key: jax.Array) -> dict:
    """Fresh fp32 parameters as nested dicts."""
    return _init(config, key)


def init_encoder(config: EncoderConfig, key: jax.Array) -> dict:
    """Fresh fp32 parameters as nested dicts."""
    return _init(config, key)


def apply_decoder(
    config: DecoderConfig,
    params: dict,
    z: Float[Array, "B C r r r"],
    *,
    dtype: Dtype = jnp.float32,
) -> Float[Array, "B O R R R"]:
    """Occupancy logits of latents; a voxel is occupied where its logit is above 0."""
    return _apply(config, params, z, dtype)


def apply_encoder(
    config: EncoderConfig,
    params: dict,
    occupancy: Float[Array, "B I R R R"],
    *,
    dtype: Dtype = jnp.float32,
) -> tuple[Float[Array, "B C r r r"], Float[Array, "B C r r r"]]:
    """(mean, log-variance) of the latents; TRELLIS takes the mean as z."""
    mean, logvar = jnp.split(_apply(config, params, occupancy, dtype), 2, axis=1)
    return mean, logvar
