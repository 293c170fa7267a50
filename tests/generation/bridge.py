"""Small datasets for the tests of the way to the second stage and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dso_jax.dataset.coords import Decode
from dso_jax.dataset.writer import DatasetWriter

Key = tuple[str, int, int]


def names(count: int) -> list[Key]:
    """Samples of lamp-0, seat/chair-1, lamp-2, lamp-0 again ...; every third object has a view 5.

    Two samples an object at first: 0 and 1 of its view.
    """
    kinds = ("lamp-0", "seat/chair-1", "lamp-2")
    return [(kinds[i // 2 % 3], 5 * (i // 2 % 3 == 1), i % 2 + 2 * (i // 6)) for i in range(count)]


def write(
    folder: Path, keys: list[Key], meta: dict[str, Any] | None = None, shape=(2, 2, 2, 2)
) -> Path:
    """Adds a shard with these samples; each latent holds its number in the folder."""
    writer = DatasetWriter(folder, {"base": "none"} if meta is None else meta)
    start, n = len(writer), len(keys)
    columns = {
        "object": [name for name, _, _ in keys],
        "view": [view for _, view, _ in keys],
        "sample": [sample for _, _, sample in keys],
        "seed": [1000 + start + i for i in range(n)],
        "condition_row": list(range(n)),
        "tilt_deg": [1.0, 80.0] * (n // 2) + [1.0] * (n % 2),
        "rotation_deg": [1.0, 80.0] * (n // 2) + [1.0] * (n % 2),
        "status": ["rest"] * n,
        "margin_deg": [5.0] * n,
        "stable": [True, False] * (n // 2) + [True] * (n % 2),
        "protocol": ["0123abcd"] * n,
        "engine": ["mjx 3"] * n,
        "source": ["occupancy"] * n,
    }
    numbers = np.arange(start, start + n, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    latents = np.broadcast_to(numbers, (n, *shape))
    views = [float(hash_of(name, view)) for name, view, _ in keys]  # one condition an image
    conditions = np.zeros((n, 3, 8), np.float32) + np.array(views).reshape(-1, 1, 1)
    writer.append(columns, latents, conditions.astype(ml_dtypes.bfloat16))
    return folder


def hash_of(name: str, view: int) -> int:
    return 1 + sum(name.encode()) % 100 + view


def decode(occupied: np.ndarray) -> Decode:
    """A decoder that knows the answers by the number in a latent."""
    return lambda latents: occupied[latents[:, 0, 0, 0, 0].astype(int)]


def keys_of(samples: dict[str, np.ndarray]) -> Iterator[Key]:
    columns = (samples[name].tolist() for name in ("object", "view", "sample"))
    return zip(*columns, strict=True)
