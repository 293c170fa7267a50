"""How parity with torch is measured."""

from __future__ import annotations

import numpy as np

# fp32 has a relative step of 6e-8; sums of some hundred products in another order, a few layers
# deep, stay below 1e-5 of the largest value. A wrong epsilon or GELU does not.
FORWARD = 1e-5
# A gradient runs through all layers twice; a trajectory through the model 22 times.
GRADIENT = 1e-4
TRAJECTORY = 1e-4

# For programs that take longer to compile than to run: halves it. Whole models are compared under
# the default optimisation too.
FAST_COMPILE: dict[str, bool | str] = {"xla_backend_optimization_level": "0"}


def difference(ours, reference) -> float:
    """max|a - b| / max|b|, the measure of every parity figure."""
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert a.shape == b.shape, f"{a.shape} is not {b.shape}"
    assert np.abs(b).max() > 0, "a reference of zeros shows nothing"
    return float(np.abs(a - b).max() / np.abs(b).max())
