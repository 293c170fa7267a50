"""`dso generate` at full size with random weights: samples a second, and where the time goes.

    python benchmarks/generation.py --out benchmarks/results/generation.json
    python benchmarks/generation.py -f '^(job|sampler)' --batches 16,64 --out h200.json
    python benchmarks/generation.py --size tiny --out tiny.json               seconds, anywhere

The weights of TRELLIS-image-large and its DINOv2 are random, the pictures drawn. Random weights
decode to noise; bodies and labels are therefore made of voxelised meshes of tests/data/meshes in
place of the decoder's output, whose own time is spent all the same. The record says so.

`job` is the command itself, from picture files to a labelled folder: once to compile, then timed.
`sampler`, `encode`, `decode`, `conv` and `labels` time a stage alone, warm, its inputs on the
device; `torch` the sampler's rival under torch.compile. Each group of cases has a process of its
own, with a limit; each case is recorded as soon as it is done, and is skipped the next time. At the
end: shares, and the 312k samples of the paper.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dso_jax.atomic import write_text  # noqa: E402

GROUPS = ("job", "sampler", "encode", "decode", "labels", "conv", "torch")
NOTE = (
    "random weights; bodies and labels of voxelised meshes in place of the decoder's output, "
    "which is noise and whose time is spent all the same"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes what is needed, runs the groups, prints the summary; 1 if a case failed."""
    options = _parser().parse_args(argv)
    record = Record(options.out)
    if options.group:
        return _group(options, record)
    end = time.monotonic() + options.budget
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        _prepare(work, options)
        for group in GROUPS:
            if re.search(options.filter, group):
                _apart(group, work, options, end - time.monotonic())
    record = Record(options.out)
    from benchmarks.generation_summary import summary

    print(summary(record.cases), flush=True)
    return int(any("error" in case for case in record.cases.values()))


class Record:
    """Figures by the names of cases, in a JSON file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._contents: dict[str, Any] = {"note": NOTE, "cases": {}}
        if path.exists():
            self._contents = json.loads(path.read_text(encoding="utf-8"))

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        """Name -> figures."""
        return self._contents["cases"]

    def run(self, name: str, measure: Callable[[], dict[str, Any]], **about: Any) -> None:
        """Measures a case unless it is there, prints and keeps it; a failure is kept as `error`."""
        if name in self.cases and "error" not in self.cases[name]:
            return
        started = time.monotonic()
        figures: dict[str, Any]
        try:
            figures = measure()
        except Exception as error:  # noqa: BLE001 - the other cases are worth having
            text = str(error).strip() or type(error).__name__
            figures = {"error": f"{type(error).__name__}: {text.splitlines()[0][:300]}"}
        figures["wall_s"] = time.monotonic() - started
        self.cases[name] = about | figures
        for metric, value in figures.items():
            shown = f"{value:.5g}" if isinstance(value, float) else value
            print(f"{name}.{metric} {shown}", flush=True)
        write_text(self._path, json.dumps(self._contents, indent=1) + "\n")


def _prepare(work: Path, options: argparse.Namespace) -> None:
    """Weights and pictures, unless they are there."""
    from benchmarks import generation_inputs as inputs

    started, size = time.monotonic(), inputs.SIZES[options.size]
    if not (work / "encoder.safetensors").exists():
        inputs.write_pipeline(work, size)
    inputs.write_pictures(work / "pictures", options.pictures, size.edge)
    print(f"inputs in {work}: {time.monotonic() - started:.1f} s", flush=True)


def _apart(group: str, work: Path, options: argparse.Namespace, left: float) -> None:
    """A group of cases in a process that then ends, within its limit."""
    if left <= 0:
        print(f"--- {group}: no time left", flush=True)
        return
    command = [sys.executable, __file__, "--group", group, "--work", str(work)]
    passed = ("size", "out", "batches", "pictures", "samples", "drops", "cases")
    command += [f"--{name}={getattr(options, name)}" for name in passed]
    # Both: our command chooses the folder that it would anyway, the stages find the same programs.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(work / "xla"))
    environ = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    started, limit = time.monotonic(), min(left, options.limit)
    print(f"--- {group}", flush=True)
    try:
        code = subprocess.run(command, timeout=limit, check=False, env=environ).returncode
    except subprocess.TimeoutExpired:
        code = f"over the limit of {limit:.0f} s"
    print(f"--- {group}: {code}, {time.monotonic() - started:.1f} s", flush=True)


def _group(options: argparse.Namespace, record: Record) -> int:
    """The cases of one group, in this process."""
    # All of the card: the job needs its pool, and nobody else is there.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    batches = [int(batch) for batch in options.batches.split(",")]
    if options.group == "torch":  # a process with one CUDA runtime
        from benchmarks import generation_torch

        generation_torch.run(record, batches, options)
        return 0
    from benchmarks import generation_job, generation_stages
    from benchmarks.generation_inputs import SIZES

    size = SIZES[options.size]
    if options.group == "job":
        generation_job.run(record, options.work, size, batches[0], options)
    else:
        getattr(generation_stages, options.group)(record, options.work, size, batches, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-f", "--filter", default="", metavar="REGEX", help=f"groups, of {', '.join(GROUPS)}")
    add("--cases", default="", metavar="REGEX", help="cases of these groups whose names match")
    add("--out", type=Path, required=True, metavar="JSON", help="file to append to")
    add("--size", choices=("full", "tiny"), default="full")
    add("--work", type=Path, help="folder for weights and data (5 GB; default: a temporary one)")
    add("--batches", default="32,64,16,4", help="samples a call; the job takes the first")
    add("--pictures", type=int, default=128, help="of the job (default: 128)")
    add("--samples", type=int, default=4, help="of each picture (default: 4)")
    add("--drops", type=int, default=4096, help="bodies that the labels are timed with")
    add("--limit", type=float, default=300, metavar="S", help="seconds a group may take")
    add("--budget", type=float, default=3600, metavar="S", help="seconds for all groups together")
    add("--group", choices=GROUPS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
