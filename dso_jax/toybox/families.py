"""Objects of the toybox: a family's parts, leaned, rasterised, and kept if they barely stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from dso_jax.toybox import creatures, furniture
from dso_jax.toybox.balance import static_margin_deg
from dso_jax.toybox.shapes import GROUND, Part, rasterise

MIN_MARGIN_DEG = 1.2  # below, soft contacts let even the true object creep over its edge
MAX_MARGIN_DEG = 2.0  # half a voxel missing at a foot, or a head moved by one, can tip it
MAX_LEAN = 2.5  # voxels at the top
MAX_SHIFT = 0.75  # voxels; keeps the feet from always meeting the grid the same way
MIN_TOP, MAX_TOP = GROUND + 22, GROUND + 27  # index range of the highest occupied layer
MAX_DRAWS = 2000

_BUILDERS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "biped": creatures.biped,
    "lamp": furniture.lamp,
    "chair": furniture.chair,
    "goblet": furniture.goblet,
    "sign": furniture.sign,
    "flamingo": creatures.flamingo,
    "table": furniture.table,
    "tripod": furniture.tripod,
    "tower": furniture.tower,
    "giraffe": creatures.giraffe,
    "bonsai": creatures.bonsai,
}
FAMILIES: tuple[str, ...] = tuple(_BUILDERS)


@dataclass(frozen=True)
class ToyObject:
    """One object: solid occupancy [x, y, z] with z up, and how far it is from tipping."""

    seed: int
    family: str
    occupancy: Bool[np.ndarray, "32 32 32"]
    margin_deg: float


def make_object(seed: int) -> ToyObject:
    """Draw the object of `seed`; consecutive seeds cycle through FAMILIES.

    Draws come from the seed's own generator until one is in one piece, inside the grid, and its
    static margin lies in [MIN_MARGIN_DEG, MAX_MARGIN_DEG].

    Raises:
      ValueError: if `seed` is negative.
      RuntimeError: if MAX_DRAWS draws all fail (a family's ranges are then wrong).
    """
    if seed < 0:
        raise ValueError(f"seed: expected a non-negative integer, got {seed}")
    family = FAMILIES[seed % len(FAMILIES)]
    rng = np.random.default_rng(seed)
    for _ in range(MAX_DRAWS):
        parts = _BUILDERS[family](rng)
        lean = rng.uniform(-MAX_LEAN, MAX_LEAN, 2)
        shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
        solid = rasterise(parts, (lean[0], lean[1]), (shift[0], shift[1]))
        margin = static_margin_deg(solid)
        if MIN_MARGIN_DEG <= margin <= MAX_MARGIN_DEG and _well_formed(solid):
            return ToyObject(seed, family, solid, margin)
    raise RuntimeError(f"toybox: no {family} of seed {seed} stands after {MAX_DRAWS} draws")


def _well_formed(solid: Bool[np.ndarray, "32 32 32"]) -> bool:
    """One piece, clear of the border, of the common height."""
    top = int(np.flatnonzero(solid.any(axis=(0, 1)))[-1])
    if not MIN_TOP <= top <= MAX_TOP:
        return False
    sides = solid[0].any() or solid[-1].any() or solid[:, 0].any() or solid[:, -1].any()
    if sides:
        return False
    _, pieces = ndimage.label(solid)  # pyright: ignore[reportGeneralTypeIssues]
    return pieces == 1
