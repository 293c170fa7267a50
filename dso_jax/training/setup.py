"""What precedes the loop: loading, checks that the parts fit together, compilation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dso_jax.config import Config
from dso_jax.dataset.store import Dataset
from dso_jax.errors import UsageError
from dso_jax.training import sharding
from dso_jax.training.policy import Weights
from weight_port import WeightError

logger = logging.getLogger(__name__)


def load_base(config: Config, mesh: Mesh) -> Any:
    """The published generator `config.base`, in the types and places in which it will be used."""
    # Weights that train start from all the digits that the file has.
    dtype = config.system.dtype if config.trainable == ("lora",) else "float32"
    # Here, so that a caller with a base of its own needs none of the readers.
    from dso_jax import pretrained

    try:
        return pretrained.load(config.base, dtype=dtype, sharding=sharding.by_shape(mesh))
    except WeightError as error:
        raise UsageError(str(error)) from None


def check_fit(dataset: Dataset, base: Any) -> None:
    """Refuse latents of another shape than the generator's.

    Raises:
        UsageError: naming meta.json and both shapes.
    """
    flow = base.flow_config
    edge = flow.resolution
    meta = dataset.folder / "meta.json"
    expected = (flow.in_channels, edge, edge, edge)
    if dataset.latent_shape != expected:
        raise UsageError(
            f"{meta}: latent_shape is {dataset.latent_shape}, {base.name} takes {expected}"
        )
    made_by = dataset.meta.get("base_sha256")
    if made_by not in (None, base.sha256):
        logger.warning("%s: the samples were made by another generator than %s", meta, base.name)


def keys(seed: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """The keys of the adapter's start and of the steps; the second is on all devices."""

    def split() -> jax.Array:
        return jax.random.split(jax.random.key(seed))

    return split()[0], jax.jit(lambda: split()[1], out_shardings=sharding.replicated(mesh))()


def describe(trainable: dict, weights: Weights) -> str:
    """How much trains, as a sentence."""
    counts = [sum(leaf.size for leaf in jax.tree.leaves(t)) for t in (trainable, weights.frozen)]
    share = 100 * counts[0] / sum(counts)
    return f"{counts[0]:,} of {sum(counts):,} parameters train ({share:.2f} %)"


def compile_all(*functions: Any, arguments: tuple, options: Sequence[str] = ()) -> list[Callable]:
    """Compile jitted functions of the same arguments now, and say how long it took.

    Args:
        options: of the compiler, as `system.xla`.

    Raises:
        UsageError: an option that the compiler does not know.
    """
    start = time.monotonic()
    logger.info("compiling (kept in the compilation cache for the next run) ...")
    compiled = [compile_one(function, arguments, options) for function in functions]
    logger.info("compiled in %.1f s", time.monotonic() - start)
    return compiled


def compile_one(function: Any, arguments: tuple, options: Sequence[str]) -> Any:
    """A jitted function compiled for these arguments; options and errors as in `compile_all`."""
    chosen = compiler_options(options)
    try:
        return function.lower(*arguments).compile(chosen)
    except jax.errors.JaxRuntimeError as error:
        if not chosen or "option" not in str(error):
            raise
        raise UsageError(f"system.xla: {str(error).splitlines()[0]}") from None


def compiler_options(options: Sequence[str]) -> dict[str, bool | str]:
    """`name=value` each -> what `jax.stages.Lowered.compile` takes.

    Raises:
        UsageError: one without name or value.
    """
    pairs = [option.partition("=") for option in options]
    for option, (name, _, value) in zip(options, pairs, strict=True):
        if not name or not value or name.startswith("-"):
            raise UsageError(f"system.xla: {option!r}: expected name=value, without dashes")
    truth = {"true": True, "false": False}
    return {name: truth.get(value.lower(), value) for name, _, value in pairs}


def samples_per_step(config: Config) -> int:
    """Latents that pass forward and backward in one optimizer step."""
    return config.train.batch_size * (1 if config.objective.name == "sft" else 2)
