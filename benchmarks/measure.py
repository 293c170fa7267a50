"""What every case of `run.py` shares: sizes, timing, and memory."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import turn
from dso_jax.models.config import FlowConfig, LoRAConfig

GIB = 2**30
WARM_UPS = 2  # calls after compilation, before the clock counts


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the network is.

    Attributes:
        flow: the transformer.
        tokens: condition tokens of an image.
        lora: the adapter.
        matmul: edge of the square matrices whose product is the ceiling.
    """

    flow: FlowConfig
    tokens: int
    lora: LoRAConfig
    matmul: int

    def with_grid(self, edge: int) -> Size:
        """The same network on edge^3 voxel tokens."""
        return dataclasses.replace(self, flow=dataclasses.replace(self.flow, resolution=edge))


SIZES = {
    "full": Size(FlowConfig(), 1374, LoRAConfig(), 8192),
    "small": Size(
        FlowConfig(resolution=4, model_channels=32, cond_channels=16, num_blocks=2, num_heads=2),
        tokens=5,
        lora=LoRAConfig(rank=2, alpha=4.0),
        matmul=64,
    ),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What the command line says about all cases.

    Attributes:
        size: key of `SIZES`.
        repeats: timed calls.
    """

    size: str = "full"
    repeats: int = 10


def versions(*packages: str) -> dict[str, str]:
    """Of Python, and of those packages that are here."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def timed(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Milliseconds of `call`, which returns when its work is done: all, median, least, most."""
    turn.alone()
    for _ in range(WARM_UPS):
        call()
    milliseconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return {
        "ms": statistics.median(milliseconds),
        "ms_min": min(milliseconds),
        "ms_max": max(milliseconds),
        "ms_all": [round(value, 4) for value in milliseconds],
    }


def rates(figures: dict[str, Any], **flop: float) -> dict[str, Any]:
    """`figures` with TFLOP of a call and TFLOP/s for each named count of operations."""
    for name, count in flop.items():
        figures[f"tflop_{name}"] = count / 1e12
        figures[f"tflops_{name}"] = count / 1e12 / (figures["ms"] / 1e3)
    return figures
