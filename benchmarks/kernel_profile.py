"""Where a step's time goes on a GPU: its kernels' own times, summed by kind.

    python benchmarks/run.py --device gpu -f '^profile' --out profile.json

Kernels are those that the profiler saw while the step ran some times after its warm-up; each
counts to the first kind of `KINDS` whose pattern its name has. `idle` is what is left of the
step's time by the clock, profiler off.
"""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

# cuDNN's names, then cuBLAS's and Triton's, then XLA's for what it made itself.
KINDS = {
    "attention backward": r"sdpa.*bprop|flash.*bwd|bprop|mha.*bwd|dO_O|convert_dq|dq_reduction",
    "attention forward": r"sdpa|flash|fprop|mha",
    "products": r"nvjet|gemm|cutlass|cublas|dot|splitK",
    "copies": r"memcpy|copy|transpose|dynamic_update_slice|dynamic_slice|concatenate|pad",
    "reductions": r"reduce",
    "elementwise": r".",
}
TOP = 40  # kernels listed by name


def kernel_times(call: Callable[[], Any], repeats: int) -> dict[str, tuple[float, float]]:
    """(milliseconds, launches) a call by kernel name, over `repeats` calls.

    XLA numbers what it fuses; equal names of unrolled blocks count together.
    """
    spent: dict[str, list[float]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                call()
        for path in Path(folder).rglob("*.xplane.pb"):
            for name, nanoseconds in _events(ProfileData.from_file(str(path))):
                spent[re.sub(r"_\d+$", "", name)].append(nanoseconds)
    return {
        name: (sum(times) / 1e6 / repeats, len(times) / repeats) for name, times in spent.items()
    }


def summary(times: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Milliseconds and launches by kind, and the kernels that take most."""
    kinds = dict.fromkeys(KINDS, 0.0)
    launches = dict.fromkeys(KINDS, 0.0)
    for name, (milliseconds, count) in times.items():
        kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.I))
        kinds[kind] += milliseconds
        launches[kind] += count
    top = sorted(times.items(), key=lambda item: -item[1][0])[:TOP]
    figures: dict[str, Any] = {f"{kind} ms": value for kind, value in kinds.items()}
    figures["launches"] = sum(launches.values())
    figures["launches_by_kind"] = launches
    figures["top"] = {name[:160]: [round(ms, 4), count] for name, (ms, count) in top}
    return figures


def _events(data: Any) -> Iterator[tuple[str, float]]:
    """(name, ns) of each kernel: what the streams of a GPU's plane hold."""
    for plane in data.planes:
        if "GPU" not in plane.name:
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                yield event.name, event.duration_ns
