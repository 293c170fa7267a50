"""Labels a second, drops only: engines, slots, hull sizes, early stop, contact rules, and growth.

    python benchmarks/labels.py --out labels.json              every case that is not in there
    python benchmarks/labels.py -f '^312k' --bodies b.npz      some, with bodies of real_bodies.py
    python benchmarks/labels.py --scale 0.001                  tiny: does it run at all?
    python benchmarks/labels.py --list                         names

A case puts its objects through the stream of its engine as the job does, in blocks, once what it
needs is compiled (`compile_s`). Objects are those of --bodies again and again, mixed by a fixed
seed, so that hulls of all buckets are simulated side by side unless the case names one. Lines read
`name.metric value`. Engines that are slow get a sample; `seconds_for_312k` is by their rate.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import c_processes, real_bodies  # noqa: E402
from dso_jax.atomic import write_text  # noqa: E402
from sim_mjx import Protocol, RigidBody, concatenate, referee, warp_engine  # noqa: E402
from sim_mjx.drop import Step, drop  # noqa: E402
from sim_mjx.engines import STREAM_BLOCK  # noqa: E402
from sim_mjx.rest import Rest  # noqa: E402
from sim_mjx.sizes import cores  # noqa: E402
from sim_mjx.stream import DropStream  # noqa: E402

PAPER = 312_000  # labels of the paper's dataset
WARP_SLOTS = (8192, 32768)
C_SAMPLE = 16_000  # objects that C drops for its rate


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to make labels.

    Attributes:
        group: what it is part of.
        engine: `mjx`, `mujoco` or `mujoco_warp`.
        objects: how many are dropped.
        step: of MJX.
        slots: on each device; None for the engine's own choice.
        hull: points of the one bucket that is dropped; None for all of them.
        early_stop: whether an object that has come to rest is let go.
        contact: the contact rule, of MJX alone.
    """

    group: str
    engine: str = "mjx"
    objects: int = PAPER
    step: Step = "slim"
    slots: int | None = None
    hull: int | None = None
    early_stop: bool = True
    contact: str = "c4"

    @property
    def name(self) -> str:
        engine = self.engine if self.engine != "mjx" else f"mjx-{self.step}"
        parts = [engine, f"{self.objects}"]
        parts += [f"slots{self.slots}"] if self.slots else []
        parts += [f"hull{self.hull}"] if self.hull else []
        parts += [] if self.early_stop else ["full"]
        parts += [] if self.contact == "c4" else [self.contact]
        return "/".join([self.group, "-".join(parts)])


def cases() -> list[Case]:
    """By importance."""
    listed = [Case("312k"), Case("312k", "mujoco", 4_000)]
    warp = importlib.util.find_spec("mujoco_warp") is not None
    listed += [Case("312k", "mujoco_warp", 131_072, slots=n) for n in WARP_SLOTS if warp]
    listed += [Case("growth", objects=n) for n in (10_000, 30_000, 100_000, 300_000)]
    listed += [Case("hull", objects=65_536, hull=n) for n in (64, 256)]
    listed += [Case("hull", objects=16_384, hull=1024)]
    slots = (1024, 8192, 32768, 131072)
    listed += [Case("slots", objects=131_072, hull=64, slots=n) for n in slots]
    listed += [Case("rule", objects=65_536, contact="skin")]
    listed += [Case("stop", objects=65_536, early_stop=False)]
    listed += [Case("stock", objects=16_384, step="stock", hull=64)]
    listed += [Case("stop", "mujoco", 1_000, early_stop=False)]
    return listed


def measure(case: Case, bodies: dict[int, RigidBody], scale: float = 1.0) -> dict[str, Any]:
    """Seconds from the first body to the last result, and what was done in them."""
    protocol = Protocol(early_stop=case.early_stop, contact=case.contact)  # type: ignore[arg-type]
    count = max(1, round(case.objects * scale))
    if case.hull is not None:
        bodies = {case.hull: bodies[case.hull]}
    run, compiled = {"mjx": _mjx, "mujoco": _c, "mujoco_warp": _warp}[case.engine](
        case, protocol, bodies, list(_blocks(bodies, count)), count
    )
    arrivals: list[tuple[float, int]] = []
    began = time.perf_counter()

    def note(ended: int) -> None:
        arrivals.append((time.perf_counter() - began, ended))

    rests, put = run(note)
    seconds = time.perf_counter() - began
    steps = sum(int(rest.steps.sum()) for rest in rests)
    stable = sum(int(rest.stable(protocol).sum()) for rest in rests)
    moving = sum(int((rest.status == "moving").sum()) for rest in rests)
    reached = {f"seconds_to_{share:g}%": _reached(arrivals, share, count) for share in (50, 90, 99)}
    stats = jax.local_devices()[0].memory_stats() if case.engine == "mjx" else None
    return {
        "objects": count,
        "seconds": seconds,
        **reached,
        "tail_seconds": seconds - reached["seconds_to_99%"],
        "put_seconds": put,
        "seconds_for_312k": seconds * PAPER / count,
        "labels_per_second": count / seconds,
        "microseconds_a_label": 1e6 * seconds / count,
        "steps_per_second": steps / seconds,
        "mean_steps": steps / count,
        "stable_percent": 100 * stable / count,
        "moving_percent": 100 * moving / count,
        "compile_s": compiled,
        "device_peak_bytes": (stats or {}).get("peak_bytes_in_use"),
        "curve": _curve(arrivals, count),
    }


def agreement(bodies: dict[int, RigidBody], tilts: dict[int, np.ndarray]) -> dict[str, Any]:
    """Labels of this device against C's, by tilt; ten seconds there, early stop here."""
    protocol = Protocol(measure="tilt")
    count = agree = 0
    differences = []
    for points, group in bodies.items():
        rest, c = drop(group, protocol, step="slim"), tilts[points]
        stands = c < protocol.threshold_deg
        count, agree = count + len(group), agree + int((rest.stable(protocol) == stands).sum())
        differences.append(np.abs(rest.tilt_deg - c)[stands & rest.stable(protocol)])
    both = np.concatenate(differences)
    quantiles = {f"tilt_difference_p{q}": float(np.percentile(both, q)) for q in (50, 99, 100)}
    return {"objects": count, "agree": agree, **quantiles}


Run = Callable[[Callable[[int], None]], tuple[list[Rest], float]]


def _mjx(case: Case, protocol: Protocol, bodies, blocks, count: int) -> tuple[Run, float]:
    """The run, and seconds to compile for it."""

    def run(blocks, note) -> tuple[list[Rest], float]:
        began = time.perf_counter()
        with DropStream(protocol, step=case.step, slots=case.slots, progress=note) as stream:
            for block in blocks:
                stream.put(block)
            put = time.perf_counter() - began
            stream.close()
            return [rest for _, rest in stream.results()], put

    began = time.perf_counter()
    run([group[:1] for group in bodies.values()], lambda _: None)
    return functools.partial(run, blocks), time.perf_counter() - began


def _c(case: Case, protocol: Protocol, bodies, blocks, count: int) -> tuple[Run, float]:
    """As `dso label --engine mujoco` drops a block, its processes started beforehand."""
    began = time.perf_counter()
    referee.drop(blocks[0][: 2 * cores()], protocol, workers=cores())
    started = time.perf_counter() - began
    return lambda note: ([referee.drop(b, protocol, progress=note) for b in blocks], 0.0), started


def _warp(case: Case, protocol: Protocol, bodies, blocks, count: int) -> tuple[Run, float]:
    """All different meshes in one model, however often each is dropped: the most it can do.

    `dso label --engine mujoco_warp` takes a model for each 8,192 meshes, a millisecond a mesh.
    """
    began = time.perf_counter()
    width = max(group.points.shape[1] for group in bodies.values())
    every = concatenate([_wider(group, width) for group in bodies.values()])
    slots = min(case.slots or warp_engine.SLOTS, count)
    chunk = warp_engine._Chunk(every, protocol, slots)
    drops = np.resize(np.random.default_rng(0).permutation(len(every)), count)
    chunk.run(None, drops[: min(64, count)])
    compiled = time.perf_counter() - began

    def run(note) -> tuple[list[Rest], float]:
        pose, steps, at_rest = chunk.run(note, drops)
        return [Rest.from_states(pose[:, :3], pose[:, 3:], steps, at_rest, [None] * count)], 0.0

    return run, compiled


def _wider(group: RigidBody, width: int) -> RigidBody:
    """The same bodies with points repeated, and without tables: mujoco_warp makes its own."""
    short = width - group.points.shape[1]
    points = np.concatenate([group.points, np.repeat(group.points[:, :1], short, axis=1)], axis=1)
    return dataclasses.replace(group, points=points, polygons=None)


def _blocks(bodies: dict[int, RigidBody], count: int) -> Iterator[RigidBody]:
    """Blocks as the job puts them in: so many files, by bucket. Equal blocks share their memory."""
    random = np.random.default_rng(0)
    owner = np.repeat(list(bodies), [len(group) for group in bodies.values()])
    row = np.concatenate([np.arange(len(group)) for group in bodies.values()])
    every = np.resize(random.permutation(len(owner)), STREAM_BLOCK)
    whole: list[RigidBody] = []
    for first in range(0, count, STREAM_BLOCK):
        chosen = every[: min(STREAM_BLOCK, count - first)]
        if len(chosen) == len(every) and whole:
            yield from whole
            continue
        parts = [(points, row[chosen[owner[chosen] == points]]) for points in bodies]
        made = [bodies[points][rows] for points, rows in parts if len(rows)]
        whole = made if len(chosen) == len(every) else whole
        yield from made


def _reached(arrivals: list[tuple[float, int]], percent: float, count: int) -> float:
    """Seconds until so many labels were there."""
    seconds, ended = np.array(sorted(arrivals)).T
    return float(seconds[np.searchsorted(np.cumsum(ended), percent / 100 * count)])


def _curve(arrivals: list[tuple[float, int]], count: int) -> list[tuple[float, float]]:
    """Seconds and the share of labels that were there, at 50 even times."""
    seconds, ended = np.array(sorted(arrivals)).T
    share = np.cumsum(ended) / count
    times = np.linspace(0, seconds[-1], 51)[1:]
    rows = np.searchsorted(seconds, times, side="right") - 1
    ended = [round(float(share[row]), 5) if row >= 0 else 0.0 for row in rows]
    return [(round(float(t), 4), s) for t, s in zip(times, ended, strict=True)]


class TimeUp(Exception):
    """A case took longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises `TimeUp` in the main thread after so many seconds."""

    def stop(*_) -> None:
        raise TimeUp(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Record:
    """What was measured, kept on disk case by case and printed.

    Args:
        path: the JSON file, or None.
        about: machine and versions.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]):
        self.path, self.cases = path, {}
        if path is not None and path.exists():
            self.cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        self._about = about

    def measure(self, name: str, call: Callable[[], dict[str, Any]], limit: int) -> None:
        """Measures what is not recorded yet; a failure is told and passed over."""
        if name in self.cases:
            print(f"{name}: already in {self.path}", flush=True)
            return
        began = time.perf_counter()
        try:
            with time_limit(limit):
                numbers = call()
        except Exception as error:  # noqa: BLE001  the other cases go on
            print(f"{name}.error {type(error).__name__}: {str(error)[:500]}", flush=True)
            return
        numbers["wall_s"] = round(time.perf_counter() - began, 2)
        self.cases[name] = numbers
        for metric, value in numbers.items():
            if not isinstance(value, list | dict):
                shown = f"{value:.6g}" if isinstance(value, float) else value
                print(f"{name}.{metric} {shown}", flush=True)
        if self.path is not None:
            contents = {**self._about, "cases": self.cases}
            write_text(self.path, json.dumps(contents, indent=1) + "\n")


def about() -> dict[str, Any]:
    """Machine and versions."""
    device = jax.local_devices()[0]
    return {
        "command": " ".join(["python", *sys.argv]),
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "cores": cores(),
        "python": sys.version.split()[0],
        "jax": jax.__version__,
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the cases that match; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-f", "--filter", default="", help="regular expression on case names")
    parser.add_argument("--bodies", type=Path, help="file of real_bodies.py")
    parser.add_argument("--scale", type=float, default=1.0, help="part of each case's objects")
    parser.add_argument("--limit", type=int, default=60, help="seconds a case may take")
    parser.add_argument("--out", type=Path, help="JSON file; what it holds is not measured again")
    parser.add_argument("--list", action="store_true", help="print names and leave")
    options = parser.parse_args(argv)
    chosen = [case for case in cases() if re.search(options.filter, case.name)]
    if options.list:
        print("\n".join(["agreement", "312k/mujoco-processes", *(case.name for case in chosen)]))
        return 0
    bodies = real_bodies.load(options.bodies)
    record = Record(options.out, about())
    if re.search(options.filter, "312k/mujoco-processes"):
        sample = max(cores(), round(C_SAMPLE * options.scale))
        record.measure(
            "312k/mujoco-processes",
            lambda: c_processes.measure(sample, options.bodies),
            options.limit,
        )
    for case in chosen:
        record.measure(case.name, lambda c=case: measure(c, bodies, options.scale), options.limit)
    if options.bodies and re.search(options.filter, "agreement"):
        tilts = real_bodies.tilts(options.bodies)
        record.measure("agreement", lambda: agreement(bodies, tilts), options.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
