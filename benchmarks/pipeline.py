"""The data pipeline alone: batches of pairs from a dataset folder of full-size rows.

A pair costs one condition (2.8 MB), or one image (0.8 MB) where conditions are computed online, and
two latents (64 KB each). No row is read twice. With `cold`, the kernel's cache of the files is
dropped first, so that the disk is what counts, and `raw_mb_per_s` is what it gives to plain reads
of the same rows. `cpu_ms_per_pair` is the least that one core needs. `times_8_gpus` is how many
times the pairs that eight GPUs take are read, which should be three. `ms` is the mean: a median
would forget the waits for the threads.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks import measure, turn
from benchmarks.measure import SIZES, Run, Size
from dso_jax import data
from dso_jax.dataset.layout import CALLER_COLUMNS
from dso_jax.dataset.store import Dataset
from dso_jax.dataset.writer import DatasetWriter

PAIRS = 48  # a batch
CPU_BATCHES = 2
BATCHES = {"full": 16, "small": 2}
SHARD = 64  # objects, of a pair each
NEEDED = 8 * 6 / 0.4  # pairs a second: of eight H200s, which take a step of 6 pairs in 0.4 s each
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
        count = BATCHES[run.size]
        with turn.beside_others():
            objects = PAIRS * (CPU_BATCHES + count)
            write(folder, SIZES[run.size], objects, images, EDGE[run.size])
        turn.alone()
        dataset = Dataset(folder, images=images)
        row = [int(np.prod(s)) for s in (dataset.latent_shape, dataset.condition_shape)]
        pair_bytes = 2 * 2 * row[0] + (1 if images else 2) * row[1]
        figures: dict[str, Any] = {}
        if cold:
            figures["raw_mb_per_s"] = _raw(folder, pair_bytes)
        batches = data.batches(dataset, PAIRS, seed=0)
        cpu = min(_cpu_seconds(batches, index) for index in range(CPU_BATCHES))
        if cold:
            forget(folder)
        waits, begin = [], time.perf_counter()
        iterator = data.iterate(batches, start=CPU_BATCHES, threads=threads)
        for _ in range(count):
            start = time.perf_counter()
            next(iterator)
            waits.append(1e3 * (time.perf_counter() - start))
        seconds = (time.perf_counter() - begin) / count  # a batch, the threads' start included
        iterator.close()
    figures |= {"ms": 1e3 * seconds, "ms_min": min(waits), "ms_max": max(waits)}
    figures |= {"pairs_per_s": PAIRS / seconds, "times_8_gpus": PAIRS / seconds / NEEDED}
    figures["mb_per_pair"] = pair_bytes / 1e6
    figures["cpu_ms_per_pair"] = 1e3 * cpu / PAIRS
    return figures | {"mb_per_s": pair_bytes * PAIRS / seconds / 1e6}


def _cpu_seconds(batches: Any, index: int) -> float:
    """What a batch costs a core, however many others want it."""
    start = time.thread_time()
    data.at(batches, index)
    return time.thread_time() - start


def write(folder: Path, network: Size, objects: int, images: bool, edge: int) -> None:
    """A dataset of objects with one view, a stable and an unstable sample."""
    rng, flow = np.random.default_rng(0), network.flow
    latent = (flow.in_channels, *[flow.resolution] * 3)
    writer = DatasetWriter(folder, {"base": "none"})
    for first in range(0, objects, SHARD):
        count = 2 * min(SHARD, objects - first)
        index = np.arange(count)
        columns = {
            "object": np.array([f"object-{first + i // 2:05d}" for i in index]),
            "view": np.zeros(count, int),
            "sample": index % 2,
            "condition_row": index // 2,
            "stable": index % 2 == 0,
        } | {name: np.array([value] * count) for name, value in COLUMNS.items()}
        assert set(columns) <= set(CALLER_COLUMNS)
        rows = count // 2
        seen: dict[str, Any] = {}
        if images:
            seen["images"] = _bits(rng, (rows, edge, edge, 3), np.uint8)
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
    bits = _bits(rng, shape, np.uint16)
    bits &= 0x80FF
    bits |= 0x3F00
    return bits.view(ml_dtypes.bfloat16)


def _bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Random ones, eight bytes at a time: drawn one by one they would take longer than the disk."""
    size = int(np.prod(shape))
    words = -(-size * np.dtype(dtype).itemsize // 8)
    drawn = rng.integers(0, 2**64, words, np.uint64, endpoint=False)
    return drawn.view(dtype)[:size].reshape(shape)
