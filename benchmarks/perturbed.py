"""Perturbed starts: every body from 4 angles with 100 starts each, mjx against C on all cores.

    python benchmarks/perturbed.py --bodies .dev/bodies.npz --out perturbed.json
    python benchmarks/perturbed.py --starts 2                 the committed meshes, in seconds

597 objects make 238,800 drops with early stop, the paper's angles. `mjx` takes them as `dso label
--perturb` does: turned on the host while others are simulated. C drops a sample of the same starts,
a process a core; its `seconds_for_all` is by rate. Survival of both is printed per angle.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import c_processes, labels, real_bodies  # noqa: E402
from sim_mjx import Protocol, RigidBody  # noqa: E402
from sim_mjx.perturb import Perturbation, Starts  # noqa: E402
from sim_mjx.stream import DropStream  # noqa: E402

THETAS = (0.01, 0.02, 0.04, 0.08)
PROTOCOL = Protocol(measure="tilt")


def mjx(bodies: dict[int, RigidBody], starts: int) -> dict[str, Any]:
    """All drops through one stream; programs are compiled beforehand."""
    with DropStream(PROTOCOL) as stream:
        for group in bodies.values():
            stream.put(group[:1])
        stream.close()
        list(stream.results())
    angles = [Perturbation(theta, starts) for theta in THETAS]
    arrivals: list[tuple[float, int]] = []
    began = time.perf_counter()
    steps, turning = 0, 0.0
    with DropStream(
        PROTOCOL, progress=lambda n: arrivals.append((time.perf_counter() - began, n))
    ) as stream:
        everything = []
        for group in bodies.values():
            keys = [origin.sha256 for origin in group.provenance]
            one = Starts(group, angles, keys)
            everything.append(one)
            started = time.perf_counter()
            for chosen, turned in one.batches():
                turning += time.perf_counter() - started
                stream.put(turned, tag=(one, chosen))
                started = time.perf_counter()
        stream.close()
        for (one, chosen), rest in stream.results():
            one.note(chosen, rest)
            steps += int(rest.steps.sum())
    seconds = time.perf_counter() - began
    count = starts * len(THETAS) * sum(len(group) for group in bodies.values())
    survivals = [one.survivals(PROTOCOL) for one in everything]
    share = {
        f"survival_{theta:g}": sum(float(s[k].rate.sum()) for s in survivals)
        / sum(len(s[k].rate) for s in survivals)
        for k, theta in enumerate(THETAS)
    }
    return {
        "drops": count,
        "seconds": seconds,
        "seconds_to_99%": labels._reached(arrivals, 99, count),
        "seconds_turning_on_the_host": turning,
        "drops_per_second": count / seconds,
        "steps_per_second": steps / seconds,
        "mean_steps": steps / count,
        **share,
    }


def c(path: Path | None, sample: int, count: int) -> dict[str, Any]:
    """A sample of the same kinds of starts, and all of them by its rate."""
    found = c_processes.measure(sample, path, thetas=THETAS)
    return found | {"seconds_for_all": found["seconds"] * count / found["objects"]}


def main() -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bodies", type=Path, help="file of real_bodies.py")
    parser.add_argument("--starts", type=int, default=100, help="of each object and angle")
    parser.add_argument("--sample", type=int, default=16_000, help="drops of C")
    parser.add_argument("--limit", type=int, default=90, help="seconds a case may take")
    parser.add_argument("--out", type=Path, help="JSON file; what it holds is not measured again")
    options = parser.parse_args()
    bodies = real_bodies.load(options.bodies)
    count = options.starts * len(THETAS) * sum(len(group) for group in bodies.values())
    sample = min(options.sample, count)
    record = labels.Record(options.out, labels.about())
    record.measure("perturbed/mjx", lambda: mjx(bodies, options.starts), options.limit)
    record.measure("perturbed/c", lambda: c(options.bodies, sample, count), options.limit)
    if len(record.cases) == 2:
        ours, theirs = (record.cases[f"perturbed/{name}"] for name in ("mjx", "c"))
        print(f"C over mjx: {theirs['seconds_for_all'] / ours['seconds']:.1f} times the seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
