"""Generation: prompts -> latents -> occupancy -> drop -> labelled dataset folder.

Shapes: N samples, C latent channels, r latent edge, R occupancy edge.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

import sim_mjx
from dso_jax import batches
from dso_jax.batches import Progress
from dso_jax.dataset_writer import DatasetWriter
from dso_jax.models import LoRAConfig, apply_decoder, apply_flow, flow_context
from dso_jax.pretrained import Base
from dso_jax.prompts import Prompts
from dso_jax.sampler import SamplerConfig, sample
from sim_mjx.margin import static_margin_deg

log = logging.getLogger(__name__)
BATCH = 64  # samples a network call: one shape, so one compilation
OBJECTS_PER_SHARD = 64  # of a dataset: what a kill can cost


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


def sample_seeds(
    prompts: Prompts, rows: np.ndarray, number: np.ndarray, run: int = 0
) -> np.ndarray:
    """`sample_seed` of draw `number[i]` for the prompt `rows[i]`."""
    return np.array(
        [
            sample_seed(str(prompts.objects[row]), int(prompts.views[row]), int(n), run)
            for row, n in zip(rows, number, strict=True)
        ]
    )


def sample_latents(
    base: Base,
    params: Mapping,
    conditions: Float[np.ndarray, "N S D"],
    seeds: np.ndarray,
    *,
    lora: LoRAConfig | None = None,
    sampler: SamplerConfig | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Float[np.ndarray, "N C r r r"]:
    """Latents of N draws.

    Args:
      params: the flow's; `base.flow_params`, or with LoRA leaves and then `lora`.
      seeds: (N,) noise seeds in [0, 2^31).
      progress: called with the number of samples that have just finished.
    """
    run = _sampler(base.flow_config, lora, sampler or base.sampler)
    rows = np.asarray(conditions), np.asarray(seeds, np.uint32)
    return batches.run(functools.partial(run, params), *rows, size=batch, progress=progress)


def decode(
    base: Base,
    latents: Float[np.ndarray, "N C r r r"],
    *,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Float[np.ndarray, "N R R R"]:
    """Occupancy logits of latents."""
    run = _decoder(base.decoder_config)
    decoded = functools.partial(run, base.decoder_params)
    return batches.run(decoded, np.asarray(latents), size=batch, progress=progress)


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


def write_dataset(
    base: Base,
    prompts: Prompts,
    out: Path,
    protocol: sim_mjx.Protocol,
    *,
    samples: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Sample each prompt `samples` times, label, and append to the dataset folder `out`.

    Objects that the folder already holds are skipped, so a killed call is simply repeated.

    Raises:
      UsageError: the folder was begun with other settings.
    """
    settings: dict[str, Any] = {
        "base": base.name,
        "base_sha256": base.sha256,
        "protocol": protocol.hash(),
        "sampler": asdict(base.sampler),
        "seed": seed,
    }
    writer = DatasetWriter(out, settings)
    done = {(name, view) for name, view, _ in writer.keys}
    keys = zip(prompts.objects.tolist(), prompts.views.tolist(), strict=True)
    todo = np.array([key not in done for key in keys])
    if progress and not todo.all():
        progress(int((~todo).sum()) * samples)
    todo = prompts[np.flatnonzero(todo)]
    for start in range(0, len(todo), OBJECTS_PER_SHARD):
        part = todo[start : start + OBJECTS_PER_SHARD]
        rows = np.repeat(np.arange(len(part)), samples)
        number = np.tile(np.arange(samples), len(part))
        seeds = sample_seeds(part, rows, number, seed)
        latents = sample_latents(base, base.flow_params, part.conditions[rows], seeds)
        labelled = label(decode(base, latents), protocol)
        rest = labelled.rest
        writer.append(
            {
                "object": part.objects[rows],
                "view": part.views[rows],
                "sample": number,
                "seed": seeds,
                "condition_row": rows,
                "tilt_deg": rest.tilt_deg,
                "rotation_deg": rest.rotation_deg,
                "status": rest.status.astype(str),
                "margin_deg": labelled.margin_deg,
                "stable": rest.stable(protocol),
                "protocol": np.full(len(rows), protocol.hash()),
                "engine": np.full(len(rows), f"mjx {metadata.version('mujoco-mjx')} slim"),
            },
            latents,
            part.conditions,
        )
        if progress:
            progress(len(rows))
    writer.finish()


@functools.cache
def _sampler(config, lora: LoRAConfig | None, sampler: SamplerConfig) -> Callable:
    shape = (config.in_channels, *(config.resolution,) * 3)

    @jax.jit
    def run(params: dict, cond: jax.Array, seeds: jax.Array) -> jax.Array:
        noise = jax.vmap(lambda s: jax.random.normal(jax.random.key(s), shape))(seeds)

        def velocity(x: jax.Array, t: jax.Array, c: jax.Array) -> jax.Array:
            return apply_flow(config, params, x, t, c, lora=lora)

        return sample(velocity, noise, flow_context(config, params, cond, lora=lora), sampler)

    return run


@functools.cache
def _decoder(config) -> Callable:
    return jax.jit(lambda params, z: apply_decoder(config, params, z)[:, 0])
