"""The one mesh, and where arrays live on it.

Data parallel: every device holds the weights and takes its share of the pairs. Random draws are
made inside the jitted step from one key and are split with the batch, so devices draw distinct
times and noise, and any number of devices draws the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dso_jax.errors import UsageError

DATA = "data"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis over `devices` (all that are visible by default)."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: weights, optimizer state, metrics."""
    return NamedSharding(mesh, P())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis spread over the devices: batches."""
    return NamedSharding(mesh, P(DATA))


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> str:
    """The arithmetic of the global batch as a sentence.

    Raises:
        UsageError: the batch cannot be shared out evenly.
    """
    devices = mesh.devices.size
    if batch_size % (devices * accumulation):
        raise UsageError(
            f"train.batch_size {batch_size} is not a multiple of {devices} devices x "
            f"train.accumulation {accumulation}; try {devices * accumulation} or use --devices"
        )
    each = batch_size // (devices * accumulation)
    return f"{batch_size} pairs a step = {devices} device(s) x {accumulation} accumulation x {each}"


def to_device(batch: dict, mesh: Mesh) -> dict:
    """This process's part of a batch as global arrays, spread over the devices."""
    sharding = by_example(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
