"""Labels a second on parts of a host's GPUs; a part of `scaling.py`.

The bodies of --bodies, or of the committed meshes, each start turned a little, are put in block by
block until so many have been dropped: by one stream over the devices, as `dso label` does it
(`stream`, with as many labels in all or on each device); and by a process for each device
(`processes`), as `dso label --shard I/N` can be run, each on its part of the cores: one of them
alone, then two and four at the same time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure, real_bodies, turn
from benchmarks.scaling import EXPECTED, PARTS, ROOT, Results
from sim_mjx import Protocol, RigidBody
from sim_mjx.perturb import Perturbation, turned
from sim_mjx.stream import DropStream

THETA = 0.05  # radians
BLOCK = {"full": 8192, "small": 24}  # bodies that are put in together, as a job does
UNIQUE = 4  # blocks
USUAL = 76  # blocks: twice the 312,000 labels of DSO's dataset, unless
PILOT = {"full": 16, "small": 4}  # blocks that tell the rate
SECONDS = {"full": (4.0, 12.0), "small": (0.2, 0.4)}  # one device would have less or more to do
TAIL = 0.99
PROTOCOL = Protocol()


def main(folder: Path, size: str, bodies: Path | None = None) -> None:
    """Compiles for every set of devices, then measures one after another."""
    devices = jax.devices()
    count = len(devices)
    facts = {"device": devices[0].device_kind, "devices": count, "theta": THETA}
    results = Results(folder, "labels", facts | measure.versions("jax", "jaxlib", "mujoco-mjx"))
    workers: list[subprocess.Popen] = []
    with turn.beside_others():
        if any(f"processes/{n}" not in results.cases for n in (1, 2, 4) if n <= count):
            workers = [_start(number, count, size, bodies) for number in range(count)]
        blocks = make_blocks(size, bodies)
        sets = [devices[:n] for n in (1, 2, 4) if n <= count]
        start = time.perf_counter()

        def first(some: list) -> None:
            try:
                drop(blocks, 1, some)
            except EXPECTED as error:
                results.say(f"{len(some)} device(s) FAILED: {str(error)[-1500:]}")

        with ThreadPoolExecutor(len(sets)) as threads:
            list(threads.map(first, sets))
        results.say(f"compiled, and a block dropped, in {time.perf_counter() - start:.1f} s")
        ready = [worker for worker in workers if _line(worker)]
        results.say(f"{len(ready)} of {count} processes are ready")
    turn.alone()
    results.say("alone on the machine")
    try:
        _cases(results, blocks, devices, ready if len(ready) == count else [], size)
    finally:
        for worker in workers:
            worker.kill()


def _cases(
    results: Results, blocks: list[list[RigidBody]], devices: list, workers: list, size: str
) -> None:
    count = len(devices)
    results.run("pilot", lambda: drop(blocks, PILOT[size], devices[:1]))
    rate = results.cases.get("pilot", {}).get("labels_per_s_to_99_percent", 0.0)
    least, most = (round(seconds * rate / BLOCK[size]) for seconds in SECONDS[size])
    each = -(-min(max(USUAL, least), max(most, count)) // count) * count
    results.run("stream/1", lambda: drop(blocks, each, devices[:1]))
    for n in (2, 4):
        if n <= count:
            for name, total in (("same", each), ("more", n * each)):
                case = f"stream/{n}-{name}"
                results.run(case, lambda n=n, total=total: drop(blocks, total, devices[:n]))
                results.ratio(f"speedup/{case}", case, "stream/1", "labels_per_s")
    for n in (1, 2, 4):
        if n <= len(workers):
            case = f"processes/{n}"
            results.run(case, lambda n=n: _together(workers[:n], each))
            if n > 1:
                results.ratio(f"speedup/{case}", case, "processes/1", "labels_per_s")


def make_blocks(size: str, bodies: Path | None = None) -> list[list[RigidBody]]:
    """Blocks of bodies of every bucket, no two of which start alike."""
    groups = list(real_bodies.load(bodies).values())
    part = BLOCK[size] / sum(map(len, groups))
    many = [group[np.resize(np.arange(len(group)), round(part * len(group)))] for group in groups]
    return [
        [
            turned(group, Perturbation(THETA, len(group), seed).quaternions("0"))
            for group in many
            if len(group)
        ]
        for seed in range(UNIQUE)
    ]


def drop(blocks: list[list[RigidBody]], total: int, devices: Sequence[Any]) -> dict[str, Any]:
    """Puts `total` blocks into a stream over these devices, and takes what comes."""
    arrivals: list[tuple[float, int]] = []
    sums = {"labels": 0, "steps": 0, "stable": 0}
    lock = threading.Lock()
    begin, processor = time.perf_counter(), time.process_time()

    def arrived(labels: int) -> None:
        with lock:
            arrivals.append((time.perf_counter() - begin, labels))

    def take(results: Any) -> None:
        for _, rest in results:
            sums["labels"] += len(rest.steps)
            sums["steps"] += int(rest.steps.sum())
            sums["stable"] += int(rest.stable(PROTOCOL).sum())

    with DropStream(PROTOCOL, step="slim", devices=devices, progress=arrived) as stream:
        for block in range(total):
            for group in blocks[block % len(blocks)]:
                stream.put(group)
            take(stream.ready())
        stream.close()
        take(stream.results())
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    done, most = 0, TAIL * sums["labels"]
    nearly = next(at for at, n in sorted(arrivals) if (done := done + n) >= most)
    return {
        "devices": len(devices),
        "labels": sums["labels"],
        "steps": sums["steps"],
        "seconds": seconds,
        "seconds_to_99_percent": nearly,
        "labels_per_s": sums["labels"] / seconds,
        "labels_per_s_to_99_percent": TAIL * sums["labels"] / nearly,
        "steps_per_s": sums["steps"] / seconds,
        "stable_percent": 100 * sums["stable"] / sums["labels"],
        "cores_busy": processor / seconds,
    }


def _start(number: int, count: int, size: str, bodies: Path | None) -> subprocess.Popen:
    """A process that has one device, says when it is ready, and waits for a number of blocks."""
    every = sorted(os.sched_getaffinity(0))
    cores = every[number * len(every) // count :][: max(1, len(every) // count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    own = visible[number] if len(visible) > number and visible[0] else str(number)
    share = str(PARTS["labels"][1] / 2)
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": own, "XLA_PYTHON_CLIENT_MEM_FRACTION": share}
    arguments = f"{size!r}, {str(bodies or '')!r}"
    program = f"import os; os.sched_setaffinity(0, {cores}); "  # before JAX counts them
    program += f"from benchmarks import scaling_labels as s; s.work({arguments})"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def work(size: str, bodies: str) -> None:
    """Such a process."""
    blocks, devices = make_blocks(size, Path(bodies) if bodies else None), jax.devices()[:1]
    drop(blocks, UNIQUE, devices)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(drop(blocks, int(line), devices)), flush=True)


def _line(worker: subprocess.Popen) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


def _together(workers: list[subprocess.Popen], each: int) -> dict[str, Any]:
    """So many blocks in every process at the same time."""
    begin = time.perf_counter()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{each}\n")
        worker.stdin.flush()
    told = [json.loads(_line(worker)) for worker in workers]
    seconds = time.perf_counter() - begin
    labels = sum(answer["labels"] for answer in told)
    return {
        "devices": len(workers),
        "labels": labels,
        "seconds": seconds,
        "labels_per_s": labels / seconds,
        **{
            f"{figure}_each": [answer[figure] for answer in told]
            for figure in ("labels_per_s", "seconds_to_99_percent", "cores_busy")
        },
    }
