"""Bicubic resampling as torch's `interpolate` does it, as one small matrix an axis."""

from __future__ import annotations

import numpy as np


def matrix(size: int, new_size: int, *, antialias: bool, offset: float = 0.0) -> np.ndarray:
    """(new_size, size) weights: `matrix @ signal` resamples a signal of `size` samples.

    The numbers are those of `torch.nn.functional.interpolate(mode="bicubic")`, whose cubic has
    a = -0.5 with `antialias` (and widens when shrinking, as PIL's) and a = -0.75 without.

    Args:
      offset: 0 resamples to the size; otherwise by the scale factor (new_size + offset) / size, so
        that the samples sit a little closer together.
    """
    scale = size / (new_size + offset)
    centres = scale * (np.arange(new_size) + 0.5)[:, None]  # in samples; sample j is at j + 0.5
    if antialias:
        weights = _cubic((np.arange(size) + 0.5 - centres) / max(scale, 1.0), a=-0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    first = np.floor(centres - 0.5) - 1
    taps = first + np.arange(4)
    weights = np.zeros((new_size, size))
    rows = np.broadcast_to(np.arange(new_size)[:, None], taps.shape)
    # Taps beyond the border read the border, whose weight then is their sum.
    columns = np.clip(taps, 0, size - 1).astype(int)
    np.add.at(weights, (rows, columns), _cubic(taps + 0.5 - centres, a=-0.75))
    return weights.astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel: 1 at 0, and 0 at 1, 2 and beyond."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
