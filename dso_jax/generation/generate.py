"""Generation: conditions -> latents -> occupancy -> drop.

Shapes: M conditions, N samples, C latent channels, r latent edge, R occupancy edge.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import sim_mjx
from dso_jax.generation import batches
from dso_jax.generation.batches import Progress
from dso_jax.generation.prompts import Named
from dso_jax.models import Execution, LoRAConfig, apply_decoder, apply_flow, flow_context
from dso_jax.models.layers import Dtype
from dso_jax.pretrained import Base
from dso_jax.sampler import SamplerConfig, sample
from sim_mjx.margin import static_margin_deg

BATCH = 64  # samples a network call: one shape, so one compilation


@dataclass(frozen=True)
class Labelled:
    """Occupancy logits, how the objects they describe came to rest, and their static margin."""

    logits: Float[np.ndarray, "N R R R"]
    rest: sim_mjx.Rest
    margin_deg: Float[np.ndarray, " N"]


def sample_seed(obj: str, view: int, number: int, run: int = 0) -> int:
    """Noise seed of a draw: depends on what is drawn, not on batch, order or device count."""
    digest = hashlib.sha256(f"{obj}/{view}/{number}/{run}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def sample_seeds(prompts: Named, rows: np.ndarray, number: np.ndarray, run: int = 0) -> np.ndarray:
    """`sample_seed` of draw `number[i]` for the prompt `rows[i]`."""
    return np.array(
        [
            sample_seed(str(prompts.objects[row]), int(prompts.views[row]), int(n), run)
            for row, n in zip(rows, number, strict=True)
        ]
    )


def sample_latents(
    base: Base,
    params: Mapping | Sequence[Mapping],
    conditions: Float[np.ndarray, "M S D"],
    draws: np.ndarray,
    *,
    lora: LoRAConfig | None = None,
    sampler: SamplerConfig | None = None,
    execution: Execution | None = None,
    batch: int = BATCH,
    groups: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "N C r r r"]:
    """Latents of N draws, as many of each of M conditions, condition after condition.

    Args:
      params: the flow's; `base.flow_params`, or with LoRA leaves and then `lora`. Or one copy for
        each device, see `batches.copies`.
      draws: (N,) noise seeds in [0, 2^31), or (N, C, r, r, r) the noise itself.
      execution: how the transformer is carried out; fp32 by default.
      batch: samples a network call.
      groups: numbers of consecutive conditions whose draws share no batch with others'.
      progress: called with the number of samples that have just finished.

    Raises:
      ValueError: the draws are not as many for each condition.
    """
    conditions, draws = np.asarray(conditions), np.asarray(draws)
    each, over = divmod(len(draws), max(1, len(conditions)))
    if over:
        raise ValueError(
            f"{len(draws)} draws of {len(conditions)} conditions, expected as many of each"
        )
    # Draws of one condition go together as far as a batch holds them: they share keys and values.
    together = max(n for n in range(1, max(1, min(each, batch)) + 1) if each % n == 0)
    rows = draws.reshape(-1, together, *draws.shape[1:])
    parts = each // together
    if parts > 1:
        conditions = conditions.repeat(parts, axis=0)
        groups = None if groups is None else [parts * count for count in groups]
    run = _sampler(base.flow_config, lora, sampler or base.sampler, execution or Execution())
    found = batches.run(
        [functools.partial(run, one) for one in _listed(params)],
        conditions,
        rows if np.issubdtype(rows.dtype, np.floating) else rows.astype(np.uint32),
        size=max(1, batch // together),
        groups=groups,
        progress=progress and (lambda count: progress(count * together)),
    )
    return found.reshape(-1, *found.shape[2:])


def decode(
    base: Base,
    latents: Float[np.ndarray, "N C r r r"],
    *,
    params: Sequence[Mapping] | None = None,
    batch: int = BATCH,
    groups: Sequence[int] | None = None,
    progress: Progress | None = None,
    dtype: Dtype = jnp.float32,
) -> Float[np.ndarray, "N R R R"]:
    """Occupancy logits of latents, in single precision.

    Args:
      params: copies of the decoder's, one for each device; by default `base.decoder_params`.
      dtype: of the decoder's torso; TRELLIS runs it in float16.
      batch, groups, progress: as in `batches.run`.
    """
    run = _decoder(base.decoder_config, jnp.dtype(dtype).name)
    functions = [functools.partial(run, one) for one in params or [base.decoder_params]]
    rows = np.asarray(latents)
    return batches.run(functions, rows, size=batch, groups=groups, progress=progress)


def label(
    logits: Float[np.ndarray, "N R R R"],
    protocol: sim_mjx.Protocol,
    *,
    progress: Progress | None = None,
) -> Labelled:
    """Drop the solids that logits describe; empty or broken ones are `invalid` with a reason."""
    bodies, reasons = sim_mjx.bodies_from_occupancy(logits, saturation=protocol.saturation)
    rest = sim_mjx.drop(bodies, protocol, reasons=reasons, progress=progress, step="slim")
    margin = static_margin_deg(bodies)
    margin[rest.status == "invalid"] = 0.0
    return Labelled(logits, rest, margin)


def _listed(params: Mapping | Sequence[Mapping]) -> Sequence[Mapping]:
    return [params] if isinstance(params, Mapping) else params


@functools.cache
def _sampler(
    config, lora: LoRAConfig | None, sampler: SamplerConfig, execution: Execution
) -> Callable:
    shape = (config.in_channels, *(config.resolution,) * 3)

    # cuBLASLt adds biases and computes GELU where a product ends; Triton's kernels, which XLA
    # tries too, leave that to further passes over the largest arrays.
    options = {"xla_gpu_enable_triton_gemm": False} if jax.default_backend() == "gpu" else None

    @functools.partial(jax.jit, compiler_options=options)
    def run(params: dict, cond: jax.Array, draws: jax.Array) -> jax.Array:
        """(g,S,D) conditions with (g,n) seeds or (g,n,C,r,r,r) noise -> (g,n,C,r,r,r)."""
        noise = draws.reshape(-1, *draws.shape[2:])
        if not jnp.issubdtype(draws.dtype, jnp.floating):
            noise = jax.vmap(lambda s: jax.random.normal(jax.random.key(s), shape))(noise)

        def velocity(x: jax.Array, t: jax.Array, c: Any) -> jax.Array:
            return apply_flow(config, params, x, t, c, lora=lora, execution=execution)

        context = flow_context(config, params, cond, lora=lora, execution=execution)
        return sample(velocity, noise, context, sampler).reshape(*draws.shape[:2], *shape)

    return run


@functools.cache
def _decoder(config, dtype: str) -> Callable:
    return jax.jit(lambda params, z: apply_decoder(config, params, z, dtype=dtype)[:, 0])
