"""Euler sampler of the rectified flow with classifier-free guidance on an interval of times."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dso_jax import flow
from dso_jax.models import Context

Condition = jax.Array | Context
Velocity = Callable[[jax.Array, jax.Array, Any], jax.Array]


@dataclass(frozen=True)
class SamplerConfig:
    """Stage-1 sampling; the defaults are DSO's (TRELLIS's pipeline takes 25 steps, weight 5)."""

    steps: int = 12
    rescale_t: float = 3.0
    # Upstream's w: v = (1 + w) v_cond - w v_uncond, so 7.5 is ordinary guidance scale 8.5.
    guidance_weight: float = 7.5
    guidance_interval: tuple[float, float] = (0.5, 1.0)  # closed: t = 0.5 is guided

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"sampler.steps must be at least 1, got {self.steps}")
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(
                f"sampler.guidance_interval {self.guidance_interval}: low is above high"
            )

    def guided(self) -> np.ndarray:
        """(steps,) booleans: which steps call the unconditional model too."""
        low, high = self.guidance_interval
        t = flow.timesteps(self.steps, self.rescale_t)[:-1]
        # Upstream compares exactly; t = 0.5 is hit at 12 steps up to the last bit of float64.
        inside = (t >= low - 1e-9) & (t <= high + 1e-9)
        return inside & (self.guidance_weight != 0)


def sample(
    velocity: Velocity,
    noise: Float[Array, "B C R R R"],
    cond: Float[Array, "G S D"] | Context,
    config: SamplerConfig,
) -> Float[Array, "B C R R R"]:
    """Integrate from noise (t = 1) to data (t = 0).

    Guided steps run one call on the doubled batch [x; x], whose second half has a condition of
    zeros; the others one plain call. Consecutive steps of one kind share one `lax.scan`, so the
    network is traced at most once a run of steps.

    Args:
      velocity: (x, t (B,), cond) -> v, as `models.apply_flow`.
      cond: of G images with B / G samples each, side by side; or their `models.flow_context`, with
        which every step is cheaper: keys and values exist already, and the unconditional half needs
        no cross-attention.
    """
    times = flow.timesteps(config.steps, config.rescale_t)
    weight = config.guidance_weight

    def plain(x: jax.Array, t: jax.Array) -> jax.Array:
        return velocity(x, jnp.full(x.shape[0], t, x.dtype), cond)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        times = jnp.full(2 * x.shape[0], t, x.dtype)
        both = velocity(jnp.concatenate([x, x]), times, _beside_zeros(cond, x.shape[0]))
        conditional, unconditional = jnp.split(both, 2)
        return (1 + weight) * conditional - weight * unconditional

    x = noise
    flags = config.guided()
    edges = np.flatnonzero(np.diff(flags)) + 1
    for run in np.split(np.arange(config.steps), edges):
        field = guided if flags[run[0]] else plain
        pairs = jnp.asarray(np.stack([times[run], times[run + 1]], 1), x.dtype)
        x, _ = jax.lax.scan(lambda x, p: (x - (p[0] - p[1]) * field(x, p[0]), None), x, pairs)  # noqa: B023
    return x


def _beside_zeros(cond: Condition, rows: int) -> Condition:
    """The condition of a batch followed by as many samples without one."""
    if isinstance(cond, Context):
        return cond.with_unconditional(rows)
    return jnp.concatenate([cond, jnp.zeros_like(cond)])
