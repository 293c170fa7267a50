"""The data pipeline alone: batches of pairs from a dataset folder of full-size rows.

A pair costs one condition (2.8 MB), or one image (0.8 MB) where conditions are computed online, and
two latents (64 KB each). With `cold`, the kernel's cache of the files is dropped first, so that the
disk is what counts; `cpu_ms_per_pair` is the least that one core needs, and `raw_mb_per_s` what the
same disk gives to plain reads of the same rows.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks import measure
from benchmarks.measure import SIZES, Run
from dso_jax import data
from dso_jax.dataset.layout import CALLER_COLUMNS
from dso_jax.dataset.store import Dataset
from dso_jax.dataset.writer import DatasetWriter

OBJECTS = {"full": 256, "small": 6}
SHARD = 32  # objects
PAIRS = 48  # a batch
CPU_BATCHES = 4
EDGE = {"full": 518, "small": 8}  # of an image
COLUMNS = {  # of no interest here
    "seed": 0,
    "tilt_deg": 1.0,
    "rotation_deg": 1.0,
    "status": "rest",
    "margin_deg": 5.0,
    "protocol": "0123abcd",
    "engine": "none",
}


def describe() -> dict[str, str]:
    """What it was measured on; the disk is that of the folder for temporary files."""
    return {"device": "cpu"} | measure.versions("grain", "numpy")


def read(run: Run, cold: bool = False, threads: int = 2, images: bool = False) -> dict[str, Any]:
    """Milliseconds a batch of 48 pairs, and pairs and megabytes a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, run.size, images)
        dataset = Dataset(folder, images=images)
        row = [int(np.prod(s)) for s in (dataset.latent_shape, dataset.condition_shape)]
        pair_bytes = 2 * 2 * row[0] + (1 if images else 2) * row[1]
        raw = _raw(folder, pair_bytes)
        batches = data.batches(dataset, PAIRS, seed=0)
        cpu = min(_cpu_seconds(batches, index) for index in range(CPU_BATCHES))
        if cold:
            forget(folder)
        iterator = data.iterate(batches, start=CPU_BATCHES, threads=threads)
        next(iterator)  # starts the threads
        start = time.perf_counter()
        figures = measure.timed(lambda: next(iterator), run.repeats)
        calls = run.repeats + measure.WARM_UPS
        seconds = (time.perf_counter() - start) / calls  # a median would forget the waits
        iterator.close()
    figures |= {"pairs_per_s": PAIRS / seconds, "mb_per_pair": pair_bytes / 1e6}
    figures["cpu_ms_per_pair"] = 1e3 * cpu / PAIRS
    return figures | {"mb_per_s": pair_bytes * PAIRS / seconds / 1e6, "raw_mb_per_s": raw}


def _cpu_seconds(batches: Any, index: int) -> float:
    """What a batch costs a core, however many others want it."""
    start = time.thread_time()
    data.at(batches, index)
    return time.thread_time() - start


def write(folder: Path, size: str, images: bool) -> None:
    """A dataset of objects with two views, and a stable and an unstable sample of each."""
    network, rng = SIZES[size], np.random.default_rng(0)
    flow, edge = network.flow, EDGE[size]
    latent = (flow.in_channels, *[flow.resolution] * 3)
    writer = DatasetWriter(folder, {"base": "none"})
    for first in range(0, OBJECTS[size], SHARD):
        objects = min(SHARD, OBJECTS[size] - first)
        count = 4 * objects
        index = np.arange(count)
        columns = {
            "object": np.array([f"object-{first + i // 4:05d}" for i in index]),
            "view": index // 2 % 2,
            "sample": index % 2,
            "condition_row": index // 2,
            "stable": index % 2 == 0,
        } | {name: np.array([value] * count) for name, value in COLUMNS.items()}
        assert set(columns) <= set(CALLER_COLUMNS)
        rows = count // 2
        seen: dict[str, Any] = {}
        if images:
            seen["images"] = rng.integers(0, 256, (rows, edge, edge, 3), np.uint8)
        else:
            shape = (rows, network.tokens, flow.cond_channels)
            seen["conditions"] = _noise(rng, shape)
        writer.append(columns, _noise(rng, (count, *latent)), **seen)
    writer.finish()


def forget(folder: Path) -> None:
    """Asks the kernel to drop the files from its cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _raw(folder: Path, pair_bytes: int) -> float:
    """MB/s of plain reads from the disk, one after another, in pieces as large as a pair."""
    forget(folder)
    start, total = time.perf_counter(), 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while piece := file.read(pair_bytes):
                total += len(piece)
    return total / (time.perf_counter() - start) / 1e6


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """bf16 values that no file system can compress: random mantissas."""
    bits = rng.integers(0, 2**16, shape, np.uint16)
    return (bits & 0x80FF | 0x3F00).view(ml_dtypes.bfloat16)
