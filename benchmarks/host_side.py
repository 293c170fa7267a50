"""Loading weights and labelling, through benchmarks of their own; these need the whole package."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax

from benchmarks import labels, weights
from benchmarks.measure import GIB, Run
from sim_mjx.drop import Step


def describe() -> dict[str, str]:
    """Device and versions, for the record."""
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


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


def label(run: Run, slots: int, step: Step) -> dict[str, Any]:
    """Drops of two objects a slot, the second of two equal runs."""
    slots = slots if run.size == "full" else 2
    case = labels.Case(step=step, slots=slots)
    found = labels.measure(case, labels.solids(case.hull), rounds=2)
    return {name: value for name, value in found.items() if value is not None}
