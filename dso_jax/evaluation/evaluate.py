"""Held-out evaluation: sample, drop, and measure whether stability was bought with shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

import sim_mjx
from dso_jax.generation import generate
from dso_jax.generation.prompts import Prompts
from dso_jax.models import LoRAConfig
from dso_jax.pretrained import Base
from dso_jax.sampler import SamplerConfig
from sim_mjx.occupancy import fill_interior

FOOT_LAYERS = 2  # voxel layers above the lowest that count as the footprint
EVALUATION_RUN = 1_000_003  # keeps evaluation noise apart from that of preference data


@dataclass(frozen=True)
class Evaluation:
    """One entry a sample, prompt after prompt.

    Attributes:
      columns: name -> (N,): object, sample, seed, tilt_deg, rotation_deg, margin_deg, status,
        stable, and the measures of `shape_measures` (with `iou` where the truth is known).
      labelled: logits, rest poses and margins behind the columns.
    """

    columns: dict[str, np.ndarray]
    labelled: generate.Labelled

    @property
    def stable(self) -> float:
        """Share of samples that stand; empty or broken ones do not."""
        return float(np.mean(self.columns["stable"]))


def evaluate(
    base: Base,
    params: Mapping,
    prompts: Prompts,
    protocol: sim_mjx.Protocol,
    *,
    samples: int,
    seed: int = 0,
    lora: LoRAConfig | None = None,
    sampler: SamplerConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Sample every prompt `samples` times with noise that depends on (prompt, number, seed) only.

    Args:
      params: the flow's, with LoRA leaves if `lora` is given.
    """
    rows = np.repeat(np.arange(len(prompts)), samples)
    number = np.tile(np.arange(samples), len(prompts))
    seeds = generate.sample_seeds(prompts, rows, number, EVALUATION_RUN + seed)
    latents = generate.sample_latents(
        base, params, prompts.conditions[rows], seeds, lora=lora, sampler=sampler, progress=progress
    )
    labelled = generate.label(generate.decode(base, latents), protocol)
    rest = labelled.rest
    columns = {
        "object": prompts.objects[rows],
        "sample": number,
        "seed": seeds,
        "tilt_deg": rest.tilt_deg,
        "rotation_deg": rest.rotation_deg,
        "margin_deg": labelled.margin_deg,
        "status": rest.status.astype(str),
        "stable": rest.stable(protocol),
        **shape_measures(labelled.logits > 0),
    }
    if prompts.truth is not None:
        columns["iou"] = iou(labelled.logits > 0, prompts.truth[rows])
    return Evaluation(columns, labelled)


def iou(a: Bool[np.ndarray, "N R R R"], b: Bool[np.ndarray, "N R R R"]) -> np.ndarray:
    """(N,) intersection over union of occupancy; 0 where both are empty."""
    axes = (1, 2, 3)
    return (a & b).sum(axes) / np.maximum((a | b).sum(axes), 1)


def shape_measures(occupied: Bool[np.ndarray, "N R R R"]) -> dict[str, np.ndarray]:
    """What a cheat would move, each (N,), in units of the grid's edge; interiors are filled.

    footprint: area of the columns occupied in the lowest FOOT_LAYERS layers of the object
    volume, height: of the solid
    components: separate parts (6-connected)
    empty: no occupied voxel at all
    """
    edge = occupied.shape[-1]
    rows = []
    for grid in occupied:
        solid = fill_interior(grid)
        layers = np.flatnonzero(solid.any(axis=(0, 1)))
        if not len(layers):
            rows.append((0.0, 0.0, 0.0, 0, True))
            continue
        feet = solid[:, :, layers[0] : layers[0] + FOOT_LAYERS].any(axis=2).sum() / edge**2
        height = (layers[-1] - layers[0] + 1) / edge
        parts = ndimage.label(solid)[1]
        rows.append((feet, solid.sum() / edge**3, height, parts, False))
    names = ("footprint", "volume", "height", "components", "empty")
    return {
        name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
