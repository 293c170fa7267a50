"""What the numbers in sim_mjx/sizes.py cost on an accelerator, and where a turn's time goes.

    python benchmarks/tune.py --bodies .dev/bodies.npz --out tune.json
    python benchmarks/tune.py --tiny                          does it run at all?

First each program of a pool by itself, milliseconds a call: a packet's way to the device, `insert`,
`advance`, and what the host fetches afterwards. Then 100,000 labels for each setting that differs
from the present one in one number, compiled beforehand, best of two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import labels, real_bodies  # noqa: E402
from sim_mjx import Protocol, RigidBody, pool, sizes, world  # noqa: E402

OBJECTS = 100_000
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("present", {}),
    ("slots-16384", {"slots": 16384}),
    ("slots-65536", {"slots": 65536}),
    ("depth-3", {"DEPTH": 3}),
    ("packets-8", {"PACKETS": 8}),
    ("packets-16", {"PACKETS": 16}),
    ("rows-4096", {"PACKET_ROWS": 4096, "PACKET_BYTES": 2**25}),
    ("rows-8192", {"PACKET_ROWS": 8192, "PACKET_BYTES": 2**26}),
    ("rows-1024", {"PACKET_ROWS": 1024, "PACKET_BYTES": 2**23}),
]


def pieces(bodies: RigidBody, slots: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of each program of one shape, a pool of bodies half a second after their start.

    Args:
        bodies: of one bucket.
        slots: of the pool.
        repeats: timed calls; the median counts.
    """
    protocol = Protocol()
    body = world.unplaced_body(bodies, protocol)
    rows = sizes.packet_rows(slots, sum(leaf[:1].nbytes for leaf in jax.tree.leaves(body)))
    packet = jax.tree.map(lambda leaf: leaf[np.arange(rows) % len(leaf)], body)
    began = time.perf_counter()
    made = pool.programs(protocol, "slim", packet, slots, jax.local_devices()[0])
    compiled = time.perf_counter() - began
    ends = np.array([0, rows], np.int32)

    def median(call: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - started)
        return 1e3 * float(np.median(seconds))

    there = jax.block_until_ready(made.upload(packet))
    state = made.empty(there)
    inserting = []
    for _ in range(-(-slots // rows)):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(made.insert(state, there, ends))
        inserting.append(time.perf_counter() - started)
    held = [state]
    outcome: Any = None

    def advance() -> Any:
        nonlocal outcome
        held[0], outcome = made.advance(held[0])
        return held[0], outcome

    for _ in range(3):
        advance()
    advancing, fetching = median(advance), []
    for _ in range(repeats):
        jax.block_until_ready(advance())
        started = time.perf_counter()
        jax.copy_to_host_async(outcome)
        for leaf in outcome:
            np.asarray(leaf)
        fetching.append(time.perf_counter() - started)
    return {
        "slots": slots,
        "rows": rows,
        "compile_s": compiled,
        "packet_mib": sum(leaf.nbytes for leaf in jax.tree.leaves(packet)) / 2**20,
        "upload_ms": median(lambda: made.upload(packet)),
        "insert_ms": 1e3 * float(np.median(inserting)),
        "advance_ms": advancing,
        "steps_per_second": slots * protocol.check_steps / advancing * 1e3,
        "fetch_ms": 1e3 * float(np.median(fetching)),
        "device_peak_bytes": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def setting(changes: dict[str, Any], bodies: dict[int, RigidBody], objects: int) -> dict[str, Any]:
    """100,000 labels with some numbers changed."""
    slots = changes.get("slots")
    before = {name: getattr(sizes, name) for name in changes if name != "slots"}
    limit = sizes.ACCELERATOR_SLOTS
    try:
        for name in before:
            setattr(sizes, name, changes[name])
        if slots is not None:  # the limit on points stays
            sizes.ACCELERATOR_SLOTS = limit | {"slim": slots}
        case = labels.Case("tune", objects=objects)
        found = [labels.measure(case, bodies) for _ in range(2)]
    finally:
        for name, value in before.items():
            setattr(sizes, name, value)
        sizes.ACCELERATOR_SLOTS = limit
    return min(found, key=lambda one: one["seconds"])


def main() -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bodies", type=Path, help="file of real_bodies.py")
    parser.add_argument("--out", type=Path, help="JSON file; what it holds is not measured again")
    parser.add_argument("--tiny", action="store_true", help="a few objects")
    options = parser.parse_args()
    bodies = real_bodies.load(options.bodies)
    record = labels.Record(options.out, labels.about())
    with tempfile.TemporaryDirectory() as folder:
        # Another size of packets is another program, but not another kernel.
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for points, group in bodies.items():
            slots = 64 if options.tiny else sizes.slots(points, "slim", "gpu")
            repeats = 2 if options.tiny else 8
            record.measure(
                f"pieces/{points}", lambda g=group, s=slots, r=repeats: pieces(g, s, r), 60
            )
        objects = 100 if options.tiny else OBJECTS
        for name, changes in SETTINGS[: 2 if options.tiny else None]:
            record.measure(f"tune/{name}", lambda c=changes: setting(c, bodies, objects), 40)
    if record.cases:
        print("\nsetting          seconds  to 50 %  to 90 %  to 99 %     tail")
        for name, numbers in record.cases.items():
            if name.startswith("tune/"):
                columns = [numbers["seconds"]]
                columns += [numbers[f"seconds_to_{share}%"] for share in (50, 90, 99)]
                columns += [numbers["tail_seconds"]]
                print(f"{name[5:]:16}" + "".join(f"{value:9.3f}" for value in columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
