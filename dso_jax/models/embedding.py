"""How latents become tokens and back, and what tells tokens where and when they are.

Shapes: B batch, C latent channels, R grid edge, p patch edge, L = (R/p)^3 tokens, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dso_jax.models.config import FlowConfig
from dso_jax.models.layers import Linear

FREQUENCIES = 256  # width of the sinusoidal time embedding


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
