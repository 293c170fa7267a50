"""The toybox: small voxel objects that barely stand, their pictures, and a generator of them.

NumPy and SciPy only, so that worker processes start quickly; the generator is in pretrain.py.
"""

from dso_jax.toybox.balance import static_margin_deg
from dso_jax.toybox.families import (
    FAMILIES,
    MAX_MARGIN_DEG,
    MIN_MARGIN_DEG,
    ToyObject,
    make_object,
)
from dso_jax.toybox.render import (
    COND_CHANNELS,
    COND_TOKENS,
    IMAGE_SIZE,
    VIEW_AZIMUTHS_DEG,
    condition,
    image_to_uint8,
    render,
)
from dso_jax.toybox.shapes import GROUND, RESOLUTION
from dso_jax.toybox.world import SPLITS, make_objects, split

__all__ = [
    "COND_CHANNELS",
    "COND_TOKENS",
    "FAMILIES",
    "GROUND",
    "IMAGE_SIZE",
    "MAX_MARGIN_DEG",
    "MIN_MARGIN_DEG",
    "RESOLUTION",
    "SPLITS",
    "VIEW_AZIMUTHS_DEG",
    "ToyObject",
    "condition",
    "image_to_uint8",
    "make_object",
    "make_objects",
    "render",
    "split",
    "static_margin_deg",
]
