"""Which objects are for what, and many of them at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from jaxtyping import UInt8

from dso_jax.toybox.families import make_object
from dso_jax.toybox.shapes import RESOLUTION

SPLIT_SIZE = 10_000_000
SPLITS: tuple[str, ...] = ("train", "preference", "heldout")
_CHUNK = 64


def split(name: str, count: int) -> list[int]:
    """The first `count` seeds of a split; families take turns, so any prefix is balanced.

    Raises:
      ValueError: on an unknown split, or a count that is negative or beyond the split.
    """
    if name not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {name!r}")
    if not 0 <= count <= SPLIT_SIZE:
        raise ValueError(f"count: expected 0..{SPLIT_SIZE}, got {count}")
    start = SPLITS.index(name) * SPLIT_SIZE
    return list(range(start, start + count))


def make_objects(seeds: Sequence[int], workers: int = 1) -> UInt8[np.ndarray, "n 32 32 32"]:
    """Occupancy (0 or 1) of many objects, in the order of `seeds`.

    Args:
      seeds: seeds of make_object.
      workers: processes; 1 works in this one. They are spawned, since a fork after JAX has started
        its threads may hang; so a script that asks for more needs its `__main__` guard.
    """
    seeds = [int(seed) for seed in seeds]
    if workers <= 1 or len(seeds) <= _CHUNK:
        return _draw(seeds)
    chunks = [seeds[i : i + _CHUNK] for i in range(0, len(seeds), _CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
        return np.concatenate(list(pool.map(_draw, chunks)))


def _draw(seeds: list[int]) -> UInt8[np.ndarray, "n 32 32 32"]:
    solid = np.zeros((len(seeds), *(RESOLUTION,) * 3), dtype=np.uint8)
    for row, seed in enumerate(seeds):
        solid[row] = make_object(seed).occupancy
    return solid
