"""Several processes of one run: how they find each other, and what they agree on.

Every process runs the same recipe on its part of each batch and takes every decision of the loop
alike, or a collective would wait for ever. The first alone writes files; checkpoints are written by
all, as orbax does.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dso_jax.config import SystemConfig
from dso_jax.errors import UsageError
from dso_jax.training import sharding

logger = logging.getLogger(__name__)
FLAGS = "--system.coordinator HOST:PORT --system.processes N --system.process I"


def connect(system: SystemConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of this run, if there are any; must precede all use of JAX.

    Who they are is found out by JAX itself, from SLURM, Open MPI or Kubernetes, where `system` does
    not say it. JAX gives each of a launcher's processes one GPU of its host; `JAX_LOCAL_DEVICE_IDS`
    (0,1,2,3) gives it several.

    Raises:
        UsageError: there should be others, but they cannot be found.
    """
    named = system.coordinator, system.processes, system.process
    if system.processes == 1 or (named == (None, None, None) and not launched(environ)):
        return
    try:
        jax.distributed.initialize(*named)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"this run's processes cannot find each other: {reason} Give {FLAGS}; or "
            "--system.processes 1 if this process trains alone"
        ) from error
    if not is_first():
        logging.getLogger().setLevel(logging.WARNING)
    logger.info(
        "process %d of %d: %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher says that this process is one of several.

    Not every job of a cluster is: one task of SLURM trains on all GPUs of its host by itself.
    """
    if "SLURM_STEP_NODELIST" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1:
        return True
    if int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return True
    return "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ


def is_first() -> bool:
    """Whether this process writes the files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def same(value: float) -> float:
    """The first process's value, in all of them."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def local(params: Any, mesh: Mesh) -> Any:
    """The parameters where this process can use them without the others."""
    if jax.process_count() == 1:
        return params
    whole = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))(params)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def self_test(mesh: Mesh, seconds: float) -> None:
    """Let every device give a number, sum them over all, and see that each gets the right sum.

    A network between GPUs that is set up wrongly hangs rather than fails, and would do so after
    the weights are loaded and the step is compiled, without a word.

    Raises:
        UsageError: the sum is wrong, or is not there after `seconds`.
    """
    count = mesh.devices.size
    if seconds == 0 or count == 1:
        return
    failures: list[Exception] = []
    # A collective that hangs cannot be stopped: the thread must not keep the process alive.
    thread = threading.Thread(target=_sum_over, args=(mesh, failures), daemon=True)
    start = time.monotonic()
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        failures.append(TimeoutError(f"no answer within system.self_test {seconds:g} s"))
    if failures:
        raise UsageError(
            f"the {count} devices of this run cannot sum a number each: {failures[0]}; look at "
            "the network between them (NCCL_DEBUG=INFO says which one it takes), or use fewer with "
            "--devices"
        ) from failures[0]
    logger.info("%d devices summed a number each in %.1f s", count, time.monotonic() - start)


def _sum_over(mesh: Mesh, failures: list[Exception]) -> None:
    """Appends what went wrong."""
    spread, count = sharding.by_example(mesh), mesh.devices.size
    numbers = np.arange(1, count + 1, dtype=np.float32)
    try:
        given = jax.make_array_from_callback(numbers.shape, spread, lambda index: numbers[index])
        total = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))(given)
        found = {float(shard.data) for shard in total.addressable_shards}
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is a RuntimeError
        failures.append(RuntimeError(str(error).splitlines()[0]))
        return
    if found != {float(numbers.sum())}:
        failures.append(ValueError(f"the sum is {sorted(found)}, expected {numbers.sum():g}"))


class AnyProcess:
    """Whether any process has raised its flag: the same answer, at the same step, in all of them.

    With several processes the answer is that of the call before: this call's is still on its way
    behind the step, which nobody waits for.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._alone = jax.process_count() == 1
        self._sharding = sharding.by_example(mesh)
        self._any = jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))
        self._flags = len(self._sharding.addressable_devices)
        self._before: Any = False

    def __call__(self, flag: bool) -> bool:
        """Once a step, in every process."""
        if self._alone:
            return flag
        mine = np.full(self._flags, flag)
        raised = self._any(jax.make_array_from_process_local_data(self._sharding, mine))
        before, self._before = self._before, raised
        return bool(before)
