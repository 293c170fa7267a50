"""C MuJoCo with a process a core that has all its objects before the clock runs: C at its best.

The engine `mujoco` of `dso label` has a process a core too, but sends each object in a message and
waits for the last one of every batch.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import real_bodies  # noqa: E402
from sim_mjx import Protocol, referee  # noqa: E402
from sim_mjx.perturb import Perturbation, turned  # noqa: E402
from sim_mjx.sizes import cores  # noqa: E402


def measure(
    objects: int,
    bodies: Path | None,
    *,
    processes: int | None = None,
    thetas: Sequence[float] = (),
) -> dict[str, Any]:
    """Seconds to drop so many bodies, those of the file again and again.

    Args:
        objects: in all.
        bodies: file of real_bodies.py, or None.
        processes: by default one a core.
        thetas: angles of perturbed starts, in turn; by default bodies start upright.
    """
    count = processes or cores()
    share = -(-objects // count)
    with contextlib.ExitStack() as stack:
        workers = []
        for number in range(count):
            command = [sys.executable, __file__, str(number), str(share), str(bodies or "")]
            command += map(str, thetas)
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers.append(worker)
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        began = time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        steps = sum(int(w.stdout.readline()) for w in workers if w.stdout is not None)
        seconds = time.perf_counter() - began
    made = share * count
    return {
        "objects": made,
        "processes": count,
        "seconds": seconds,
        "seconds_for_312k": seconds * 312_000 / made,
        "labels_per_second": made / seconds,
        "steps_per_second": steps / seconds,
        "mean_steps": steps / made,
    }


def _work(number: int, share: int, bodies: Path | None, thetas: Sequence[float]) -> None:
    groups = real_bodies.load(bodies)
    parts = [(group, row) for group in groups.values() for row in range(len(group))]
    order = np.random.default_rng(number).permutation(len(parts))
    chosen = [parts[k] for k in np.resize(order, share)]
    print("ready", flush=True)
    sys.stdin.readline()
    steps = 0
    for group in groups.values():
        rows = np.array([row for owner, row in chosen if owner is group], int)
        if len(rows):
            chosen_bodies = group[rows]
            if thetas:
                each = -(-len(rows) // len(thetas))
                starts = [Perturbation(t, each, number).quaternions("0") for t in thetas]
                in_turn = np.stack(starts, axis=1).reshape(-1, 4)[: len(rows)]
                chosen_bodies = turned(chosen_bodies, in_turn)
            steps += int(referee.drop(chosen_bodies, Protocol(), workers=0).steps.sum())
    print(steps, flush=True)


if __name__ == "__main__":
    _work(
        int(sys.argv[1]),
        int(sys.argv[2]),
        Path(sys.argv[3]) if sys.argv[3] else None,
        [float(theta) for theta in sys.argv[4:]],
    )
