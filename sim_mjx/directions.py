"""Directions along which support points are looked for: dense around "down", where objects stand.

Legend: D directions.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

# Slopes (horizontal over vertical) of the direction rings around "down". The smallest resolves feet
# whose heights differ by a thousandth of their distance.
_RING_SLOPES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)


@functools.cache
def support_directions(count: int) -> Float[np.ndarray, "D 3"]:
    """Unit directions, float32: down, rings around down, and the rest spread over the sphere."""
    ring = max(6, (9 * count) // (16 * len(_RING_SLOPES)))
    rows = [[0.0, 0.0, -1.0]]
    for offset, slope in enumerate(_RING_SLOPES):
        # Turning each ring lets flat round feet show as many corners as there are directions.
        angle = 2 * np.pi * (np.arange(ring) + offset / len(_RING_SLOPES)) / ring
        rows += np.stack([slope * np.cos(angle), slope * np.sin(angle), -np.ones(ring)], 1).tolist()
    rest = count - len(rows)
    if rest < 32:
        raise ValueError(f"max_points: expected at least 80, got {count}")
    height = 1 - (2 * np.arange(rest) + 1) / rest
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(rest)
    radius = np.sqrt(1 - height**2)
    sphere = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    directions = np.concatenate([np.array(rows), sphere])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions.astype(np.float32)
