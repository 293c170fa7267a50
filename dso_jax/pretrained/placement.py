"""Where weights go: onto one device, or spread over many, one leaf at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# One sharding for all leaves, or one by a leaf's shape; None is the default device.
Placement = jax.sharding.Sharding | Callable[[tuple[int, ...]], jax.sharding.Sharding] | None


def place(leaf: np.ndarray, sharding: Placement) -> jax.Array:
    """One finished leaf on its devices; returns when it is there.

    Waiting keeps at most one leaf in host memory, whatever the size of the model.
    """
    if callable(sharding):
        sharding = sharding(leaf.shape)
    if sharding is None:
        array = jnp.asarray(leaf)
    else:  # each device, of this process or another, takes only its own part
        array = jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
    return jax.block_until_ready(array)
