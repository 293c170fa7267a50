"""Every benchmark of speed and memory, ours beside torch's, on one device and in one run.

    python benchmarks/run.py --out benchmarks/results/h200.json       whatever is not yet in there
    python benchmarks/run.py -f 'step-dro/b12' --out h200.json        some of the cases
    python benchmarks/run.py --small --device cpu -f 'velocity|step'  seconds, on any machine
    python benchmarks/run.py --list -f sampler                        names only
    python benchmarks/run.py --show h200.json                         the table of a file

Each case has a process of its own, so that it starts with an empty device and that two CUDA
runtimes never meet. Each finished case is appended to the file, and is skipped the next time, so a
long list can be run in pieces; one that does not fit the device is recorded as that. With --jobs
several compile side by side; while one measures, the others may only prepare theirs. Times are
medians of synchronised calls after two to warm up, with the least and the most; compilation stands
apart. `peak_gib` is what the allocator saw, `compiler_gib` what XLA planned. Operations are those
of matrix products: `needed` by the derivative, or `executed`, with whatever is computed twice.
Needs jax, flax, optax, numpy and, for the rival, torch; the last groups need the whole package.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cases import Case, every  # noqa: E402
from benchmarks.table import table  # noqa: E402
from benchmarks.turn import TURN  # noqa: E402

OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|OutOfMemory|out of memory", re.IGNORECASE)
# Most of the card for one process; the default pool is three quarters.
MEMORY = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
DEVICES = {
    "cpu": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    "gpu": {"JAX_PLATFORMS": "cuda,cpu"},
    "default": {},
}


LIMIT = "seconds a case may take; with --jobs, waiting for its turn among them (default: 900)"


class Skipped(Exception):
    """A case that cannot run here; says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases that match and are not yet recorded."""
    options = _parser().parse_args(argv)
    if options.show:
        print(table(json.loads(options.show.read_text(encoding="utf-8"))["cases"]))
        return 0
    cases = [case for case in every() if re.search(options.filter, case.name)]
    if options.one:
        (case,) = (case for case in every() if case.name == options.one)
        Path(options.result).write_text(json.dumps(measure(case, options)), encoding="utf-8")
        return 0
    if not cases:
        print(f"error: -f {options.filter!r} matches no case; see --list", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    size = "small" if options.small else "full"
    records = _read(options.out)
    done = {record["name"] for record in records if record["size"] == size}
    todo = [case for case in cases if case.name not in done]
    if len(todo) < len(cases):
        print(f"{len(cases) - len(todo)} of {len(cases)} cases are in {options.out}", flush=True)
    failed = 0
    for number, (case, figures) in enumerate(_all(todo, options), 1):
        print(f"[{number}/{len(todo)}] {case.name}", flush=True)
        if isinstance(figures, Skipped):
            failed += 1
            print(f"  skipped: {figures}", flush=True)
            continue
        record = _record(case, size, options.jobs, figures)
        for metric, value in figures.items():
            if not isinstance(value, list | dict):
                print(f"{case.name}.{metric} {value}", flush=True)
        records.append(record)
        if options.out:
            _write(options.out, records)
    print(table(records))
    return 1 if failed else 0


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one case, in this process."""
    os.environ.update(DEVICES[options.device] | MEMORY | case.environ)
    module, function = case.call.split(":")
    try:
        side = importlib.import_module(f"benchmarks.{module}")
        from benchmarks.measure import Run
    except ModuleNotFoundError as error:
        raise Skipped(f"no module named {error.name} here") from None
    run = Run("small" if options.small else "full", options.repeats)
    return side.describe() | getattr(side, function)(run, **case.options)


def _all(
    cases: Sequence[Case], options: argparse.Namespace
) -> Iterator[tuple[Case, dict[str, Any] | Skipped]]:
    """Each case with its figures or why it has none, as they finish."""

    def attempt(case: Case) -> dict[str, Any] | Skipped:
        try:
            here = options.small and not options.apart
            return measure(case, options) if here else _apart(case, options)
        except Skipped as reason:
            return reason
        except Exception as error:  # noqa: BLE001  of any library; the others go on
            return Skipped(f"{type(error).__name__}: {error}")

    if options.jobs == 1:
        yield from ((case, attempt(case)) for case in cases)
        return
    with tempfile.NamedTemporaryFile() as turn, ThreadPoolExecutor(options.jobs) as pool:
        os.environ |= {TURN: turn.name, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        try:
            running = {pool.submit(attempt, case): case for case in cases}
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C, a full disk: start no more
            del os.environ[TURN]


def _apart(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """The same in a process that then ends."""
    command = [sys.executable, __file__, "--one", case.name, "--device", options.device]
    command += ["--small"] if options.small else []
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log.txt"
        command += ["--repeats", str(options.repeats), "--result", str(result)]
        start = time.monotonic()
        with log.open("w") as output:
            try:
                code = subprocess.run(
                    command, stdout=output, stderr=output, timeout=options.limit, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                raise Skipped(f"took more than --limit {options.limit} s") from None
        spent = {"wall_s": round(time.monotonic() - start, 1)}
        if code == 0:
            return json.loads(result.read_text(encoding="utf-8")) | spent
        said = log.read_text(encoding="utf-8", errors="replace").strip()
    if OUT_OF_MEMORY.search(said):
        if options.jobs > 1:  # perhaps for want of what the others hold
            raise Skipped("out of memory beside others; run it with --jobs 1")
        return {"error": "out of memory"} | spent
    # Not the last line of all: JAX ends with a remark on its traceback.
    raised = re.findall(r"^\w[\w.]*(?:Error|Exception|Exit)\b.*", said, re.MULTILINE)
    raise Skipped((raised or said.splitlines() or [f"exit code {code}"])[-1])


def _record(case: Case, size: str, jobs: int, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": case.name,
        "size": size,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "jobs": jobs,
        "case": {k: v for k, v in dataclasses.asdict(case).items() if k != "name"},
        **figures,
    }


def _read(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return json.loads(path.read_text(encoding="utf-8"))["cases"]


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    """All or nothing: a run may be killed at any time."""
    temporary = path.with_name(f".{path.name}.tmp")
    lines = ",\n".join(" " + json.dumps(record) for record in records)
    temporary.write_text(f'{{"cases": [\n{lines}\n]}}\n', encoding="utf-8")
    temporary.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-f", "--filter", default="", metavar="REGEX", help="only cases whose name matches")
    add("--out", type=Path, metavar="JSON", help="file to append to; nothing is kept without")
    add("--device", choices=DEVICES, default="default", help="default: what jax and torch choose")
    add("--small", action="store_true", help="a tiny network, in this process: does it run?")
    add("--apart", action="store_true", help="with --small: processes as without it")
    add("--repeats", type=int, default=10, help="timed calls of a case (default: 10)")
    add("--jobs", type=int, default=1, help="cases that compile at once (default: 1)")
    add("--limit", type=float, default=900, metavar="S", help=LIMIT)
    add("--list", action="store_true", help="print the names of the cases and leave")
    add("--show", type=Path, metavar="JSON", help="print the table of a file and leave")
    add("--one", help=argparse.SUPPRESS)
    add("--result", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
