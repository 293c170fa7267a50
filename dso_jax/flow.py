"""Rectified flow as TRELLIS defines it: x_t = (1 - t) x0 + t eps, v = eps - x0, t = 1 is noise.

Shapes: B batch, then any latent shape; times are (B,).
"""

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


def _like(t: jax.Array, x: jax.Array) -> jax.Array:
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def interpolate(
    x0: Float[Array, "B ..."], eps: Float[Array, "B ..."], t: Float[Array, " B"]
) -> Float[Array, "B ..."]:
    """The point of the straight path from data (t = 0) to noise (t = 1)."""
    t = _like(t, x0)
    return (1 - t) * x0 + t * eps


def velocity(x0: Float[Array, "B ..."], eps: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """d x_t / d t, the regression target."""
    return eps - x0


def logit_normal(
    key: PRNGKeyArray, shape: tuple[int, ...], mean: float = 1.0, std: float = 1.0
) -> Float[Array, "..."]:
    """Training times sigmoid(mean + std N(0,1)); TRELLIS and DSO use mean = std = 1."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, shape))


def timesteps(steps: int, rescale_t: float = 3.0) -> np.ndarray:
    """The sampler's (steps + 1,) times from 1 to 0: r u / (1 + (r - 1) u), u linear; float64."""
    u = np.linspace(1.0, 0.0, steps + 1)
    return rescale_t * u / (1.0 + (rescale_t - 1.0) * u)
