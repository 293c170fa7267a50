"""The one mesh, and where arrays live on it.

Two axes: the `system.fsdp` devices of the second share one copy of the base's weights, a part each;
the first repeats that. Every device of both takes its own share of the pairs. What trains is small
and whole on every device. Random draws are made inside the jitted step from one key and are split
with the batch, so devices draw distinct times and noise, and any number of devices draws the same
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dso_jax.errors import UsageError

DATA, FSDP = "data", "fsdp"


def make_mesh(devices: Sequence[Any] | None = None, fsdp: int = 1) -> Mesh:
    """A mesh (data, fsdp) over `devices` (by default all of all processes).

    Raises:
        UsageError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if len(devices) % fsdp:
        raise UsageError(f"system.fsdp {fsdp} does not divide {len(devices)} device(s)")
    # A process's devices side by side, so that its rows of a batch are one piece of it.
    devices = sorted(devices, key=lambda device: device.process_index)
    grid = np.array(devices, dtype=object).reshape(-1, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device: what trains, optimizer state, metrics."""
    return NamedSharding(mesh, P())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis spread over all devices: batches."""
    return NamedSharding(mesh, P((DATA, FSDP)))


def by_shape(mesh: Mesh) -> Callable[[tuple[int, ...]], NamedSharding]:
    """Shape of a weight -> its sharding: the largest axis that divides is spread over fsdp.

    In every published size that is a width, never the axis of the stacked blocks: so a step of the
    scan over them gathers one block.
    """
    parts = mesh.shape[FSDP]

    def choose(shape: tuple[int, ...]) -> NamedSharding:
        fitting = [axis for axis, size in enumerate(shape) if parts > 1 and size % parts == 0]
        if not fitting:
            return replicated(mesh)
        axis = max(fitting, key=lambda axis: (shape[axis], axis))
        return NamedSharding(mesh, P(*[None] * axis, FSDP))

    return choose


def gather(mesh: Mesh | None) -> Callable[[jax.Array], jax.Array] | None:
    """Inside jit: a weight in parts -> the whole of it; None where weights are whole anyway."""
    if mesh is None or mesh.shape[FSDP] == 1:
        return None
    everywhere = replicated(mesh)
    return lambda leaf: jax.lax.with_sharding_constraint(leaf, everywhere)


def place(tree: Any, where: NamedSharding | Callable[[tuple[int, ...]], NamedSharding]) -> Any:
    """Put every leaf where it belongs; what is there already stays.

    Args:
        tree: arrays that every process has in full, or that are spread already.
        where: one sharding, or one by a leaf's shape.
    """

    def put(leaf: jax.Array) -> jax.Array:
        target = where if isinstance(where, NamedSharding) else where(leaf.shape)
        if target.is_fully_addressable or not leaf.is_fully_addressable:
            return jax.device_put(leaf, target)
        host = np.asarray(leaf)  # device_put would compare it with the other processes'
        return jax.make_array_from_callback(leaf.shape, target, lambda index: host[index])

    return jax.tree.map(put, tree)


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
