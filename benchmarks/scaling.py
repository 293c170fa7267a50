"""What 1, 2 and 4 GPUs of one host make of the same code: training, labels, several processes.

    python benchmarks/scaling.py --out results                     all parts, on all GPUs
    python benchmarks/scaling.py --parts labels --out results      one of them
    python benchmarks/scaling.py --devices cpu:4 --small           does it run at all?

Every part is a process that writes OUT/scaling-PART.json after each of its cases and leaves out
those that the file has. All start together: while they import and compile they share the machine,
and then one after another has it for itself, so that compilation is paid for once and not thrice.
A part that outlasts its limit is ended; what it had finished stays.

train      weak scaling of a DRO step, the same batch on one device and on all, weights in parts
labels     a stream over the devices, and a process for each
processes  two processes train a toy as one does
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.turn import TURN  # noqa: E402
from dso_jax.atomic import write_text  # noqa: E402
from dso_jax.cli.environment import take_options  # noqa: E402

# Seconds after which a part is ended, and its share of each GPU's memory.
PARTS: dict[str, tuple[float, float]] = {
    "processes": (90, 0.02),
    "train": (250, 0.55),
    "labels": (290, 0.15),
}
EXPECTED = (RuntimeError, ValueError, TypeError, OSError, AssertionError)  # JAX's are the first


class Results:
    """The file of a part, written again after every case.

    Args:
        folder: where it is.
        part: whose it is.
        facts: device and versions, for the record.
    """

    def __init__(self, folder: Path, part: str, facts: dict[str, Any]):
        self.part, self._path = part, folder / f"scaling-{part}.json"
        self.cases: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self.cases = json.loads(self._path.read_text(encoding="utf-8"))["cases"]
        self._facts, self._begin = facts | {"cores": os.cpu_count()}, time.monotonic()

    def run(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measures a case unless it is there; one that fails is reported and stays to be done."""
        if name in self.cases:
            return self.say(f"{name}: already there")
        try:
            figures = measure()
        except EXPECTED as error:
            return self.say(f"{name} FAILED: {type(error).__name__}: {str(error)[-1500:]}")
        self.cases[name] = figures
        for metric, value in figures.items():
            print(f"{self.part}/{name}.{metric} {_short(value)}", flush=True)
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in self.cases.items())
        head = json.dumps(self._facts, indent=1)[:-2]
        write_text(self._path, f'{head},\n "cases": {{\n{lines}\n }}\n}}\n')

    def say(self, text: str) -> None:
        """A line about the part, with its seconds."""
        spent = time.monotonic() - self._begin
        print(f"{self.part} [{spent:5.1f} s] {text}", flush=True)

    def ratio(self, name: str, numerator: str, denominator: str, metric: str) -> None:
        """Prints one case's figure over another's, if both are there."""
        above, below = (self.cases.get(c, {}).get(metric) for c in (numerator, denominator))
        if above is not None and below is not None:
            print(f"{self.part}/{name} {above / below:.4f}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the parts and waits for them."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--devices cpu:N, gpu or 0,1,2,3, as for every command of dso; default: all GPUs",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--bodies", type=Path, help="file of real_bodies.py, for labels")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(take_options(given))
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        return _one(options)
    with tempfile.NamedTemporaryFile() as turn:
        # NCCL takes its buffers from what no part has taken for good.
        shared = os.environ | {TURN: turn.name, "PYTHONUNBUFFERED": "1"}
        shared["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        started = {
            part: subprocess.Popen(
                [sys.executable, __file__, *given, "--part", part],
                env=shared | {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(PARTS[part][1])},
                start_new_session=True,  # a part has children, which end with it
            )
            for part in options.parts
        }
        begin = time.monotonic()
        slow = 10 if options.small else 1  # on a few cores of a CPU
        try:
            codes = {
                part: _wait(process, slow * PARTS[part][0] - (time.monotonic() - begin))
                for part, process in sorted(started.items(), key=lambda item: PARTS[item[0]][0])
            }
        finally:  # Ctrl-C
            for process in started.values():
                if process.poll() is None:
                    _wait(process, 0)
    print(f"parts ended in {time.monotonic() - begin:.0f} s: {codes}", flush=True)
    return max(codes.values())


def _one(options: argparse.Namespace) -> int:
    """A part, in this process."""
    size = "small" if options.small else "full"
    if options.part == "labels":
        from benchmarks import scaling_labels

        scaling_labels.main(options.out, size, options.bodies)
    elif options.part == "train":
        from benchmarks import scaling_train

        scaling_train.main(options.out, size)
    else:
        from benchmarks import scaling_processes

        scaling_processes.main(options.out, size)
    return 0


def _wait(process: subprocess.Popen, seconds: float) -> int:
    """The exit code, 124 if it had to be ended."""
    try:
        return abs(process.wait(max(seconds, 1)))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return 124


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
