"""Loading weights, through a benchmark of its own; needs the whole package."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax

from benchmarks import measure, weights
from benchmarks.measure import GIB, Run


def describe() -> dict[str, str]:
    """Device and versions, for the record."""
    device = jax.devices()[0].device_kind
    return {"device": device} | measure.versions("jax", "torch")


def load(run: Run, engine: str) -> dict[str, Any]:
    """A published weight file to the device, the blocks in bf16."""
    size = {"full": "full", "small": "tiny"}[run.size]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flow.safetensors"
        weights.write_weights(weights.SIZES[size], path)
        options = argparse.Namespace(size=size, repeat=run.repeats)
        found = {"jax": weights.load_jax, "torch": weights.load_torch}[engine](options, str(path))
    milliseconds = sorted(1e3 * second for second in found["seconds"])
    return {
        "ms": 1e3 * found["median_seconds"],
        "ms_min": milliseconds[0],
        "ms_max": milliseconds[-1],
        "host_growth_gib": found["host_growth_bytes"] / GIB,
    }
