"""How many: slots of a pool, rows of a packet, cores of this machine."""

from __future__ import annotations

import os

from sim_mjx.pool import Step

# Nearly the throughput of four times as many, and a tail of rolling objects costs a quarter.
CPU_SLOTS: dict[Step, int] = {"stock": 16, "slim": 32}
# On each device, of at most so many points in all: 3 GB with their polygons.
ACCELERATOR_SLOTS: dict[Step, int] = {"stock": 8192, "slim": 32768}
ACCELERATOR_POINTS = 2**24
# Rows and bytes of a packet on each device, and packets that wait there: what ends at a check.
# Small enough that most are a run of one batch, which is sent from where it is.
PACKET_ROWS, PACKET_BYTES, PACKETS = 2048, 2**24, 4
# Bodies that may wait for a slot, at least: a block of a job.
WAITING = 1024
# Turns of an accelerator that are ordered ahead: it is at one while the host is at the other.
DEPTH = 2


def slots(points: int, step: Step, platform: str) -> int:
    """Slots on one device (or CPU core) for bodies of so many points."""
    if platform == "cpu":
        return CPU_SLOTS[step]
    return min(ACCELERATOR_SLOTS[step], ACCELERATOR_POINTS // points)


def packet_rows(pool: int, row_bytes: int) -> int:
    """Rows of a packet on a device with so many slots, for bodies of so many bytes."""
    return max(1, min(pool, PACKET_ROWS, PACKET_BYTES // row_bytes))


def waiting(pools: int) -> int:
    """Bodies that may wait for the slots of some pools: enough for what they use up meanwhile."""
    return max(WAITING, 2 * pools)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
