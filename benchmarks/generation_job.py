"""The command `dso generate` as a user runs it, in this process, so that the second run is warm."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import resource
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks.generation_inputs import Size, realistic_logits
from dso_jax.cli import main as command
from dso_jax.generation.dataset import DatasetJob
from dso_jax.generation.generator import Generator


def run(record, work: Path, size: Size, batch: int, options: argparse.Namespace) -> None:
    """Two cases: with everything to compile, and warm; and, warm, with the decoder's own noise."""
    devices = jax.local_device_count()
    few = max(1, batch // options.samples) * devices
    solids = _Solids(size)
    about = {
        "batch": batch,
        "devices": devices,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "samples_a_picture": options.samples,
    }
    for name, pictures, real in (
        (f"job/b{batch}-cold", few, True),
        (f"job/b{batch}", options.pictures, True),
        (f"job/b{batch}-noise", few, False),
    ):
        if re.search(options.cases, name):
            record.run(
                name,
                lambda p=pictures, r=real: _job(work, batch, p, solids if r else None, options),
                **about,
            )


class _Solids:
    """Takes the place of the decoder's output, once the decoder has given it."""

    def __init__(self, size: Size) -> None:
        self._logits = realistic_logits(size.solids)
        self._next, self._lock = itertools.count(), threading.Lock()
        self._own = Generator.logits

    def __call__(self, generator: Generator, latents: np.ndarray, *more: Any) -> np.ndarray:
        found = self._own(generator, latents, *more)
        with self._lock:
            rows = [next(self._next) % len(self._logits) for _ in found]
        for row, into in zip(rows, found, strict=True):  # as much memory is written as otherwise
            into[:] = self._logits[row]
        return found


def _job(
    work: Path, batch: int, pictures: int, solids: _Solids | None, options: argparse.Namespace
) -> dict[str, Any]:
    out, timings = work / "data", work / "timings.json"
    shutil.rmtree(out, ignore_errors=True)
    names = sorted((work / "pictures").iterdir())[:pictures]
    line = ["generate", "--pipeline", str(work / "pipeline")]
    line += ["--encoder", str(work / "encoder.safetensors"), "--samples", str(options.samples)]
    line += ["--batch", str(batch), "--out", str(out), "--timings", str(timings), "--images"]
    logits = Generator.logits if solids is None else lambda *a: solids(*a)
    spent: list[float] = []
    run_job = DatasetJob.run

    def counted(job: DatasetJob, **arguments: Any) -> Any:
        before = _cpu_seconds()
        report = run_job(job, **arguments)
        spent.append(_cpu_seconds() - before)
        return report

    started = time.monotonic()
    with (
        mock.patch.object(Generator, "logits", logits),
        mock.patch.object(DatasetJob, "run", counted),
    ):
        code = command.main([*line, *map(str, names)])
    whole = time.monotonic() - started
    if code:
        raise RuntimeError(f"dso generate ended with {code}")
    told = json.loads(timings.read_text(encoding="utf-8"))
    made = told["samples"]
    return {
        "samples": made,
        "seconds": told["seconds"],
        "start_up_s": whole - told["seconds"],  # imports, weights, the first pictures
        "compiling_s": told["compiling"],
        "samples_per_s": made / told["seconds"],
        "stages_s": told["stages"],
        "host_cpu_s_a_sample": spent[0] / made,
        "bytes_a_sample": sum(p.stat().st_size for p in out.iterdir() if p.is_file()) / made,
        "peak_gib": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30,
        "host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
