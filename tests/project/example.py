"""A small made-up comparison, for tests of the summary and the report."""

from __future__ import annotations

import numpy as np

from dso_jax.report import gallery

METHODS = ("base", "sft", "dpo", "dro")


def columns(method: str, seed: int = 0, objects: int = 24, samples: int = 4) -> dict:
    """Columns of an evaluation in which later methods stand more often, on the same samples."""
    shared = np.random.default_rng(seed)
    luck = shared.uniform(size=objects * samples)
    stable = luck < 0.65 + 0.08 * METHODS.index(method)
    count = len(luck)
    return {
        "object": np.repeat(np.arange(objects), samples),
        "sample": np.tile(np.arange(samples), objects),
        "seed": np.arange(count),
        "tilt_deg": np.where(stable, 2.0, 80.0) + luck,
        "status": np.full(count, "rest"),
        "stable": stable,
        "iou": 0.6 + 0.1 * luck,
        "footprint": np.full(count, 0.02 + 0.001 * METHODS.index(method)),
        "volume": np.full(count, 0.1),
        "height": np.full(count, 0.8),
        "components": np.ones(count),
        "empty": np.zeros(count, bool),
    }


def shapes(count: int = 96) -> dict:
    """What an evaluation keeps for the gallery: a block that stands, or lies on its side."""
    logits = np.full((count, 8, 8, 8), -9.0)
    logits[:, 3:5, 3:5, :7] = 9.0
    image = np.zeros((count, 4, 4, 3), np.uint8)
    return gallery.keep(image, np.tile([1.0, 1.0, 0.0, 0.0], (count, 1)), logits)


def provenance() -> dict:
    """The entries of summary.json that are not numbers of the comparison."""
    return {
        "command": "dso demo --seeds 1",
        "created": "2026-01-02 03:04",
        "device": "cpu",
        "base": {"name": "toybox", "sha256": "ab" * 32},
        "protocol": {"name": "fast", "hash": "0123456789ab"},
        "versions": {"jax": "0.10.2"},
        "seconds": {"label": 12.0, "train dpo": 60.0},
        "seeds": [0],
    }
