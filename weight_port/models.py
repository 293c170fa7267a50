"""State dicts of the whole models: TRELLIS's names on one side, our trees on the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dso_jax.models import (
    DecoderConfig,
    DINOv2Config,
    EncoderConfig,
    FlowConfig,
    init_decoder,
    init_dinov2,
    init_encoder,
    init_flow,
)
from dso_jax.models.lora import adapter_leaves
from weight_port import convert, tables
from weight_port.errors import Problem, WeightError, report

Kind = Literal["flow", "encoder", "decoder", "dinov2", "dinov2_hf"]
Config = FlowConfig | EncoderConfig | DecoderConfig | DINOv2Config

_MODELS: dict[str, tuple[type, Callable[..., dict], tuple]] = {
    "flow": (FlowConfig, init_flow, tables.FLOW),
    "encoder": (EncoderConfig, init_encoder, tables.STRUCTURE_VAE),
    "decoder": (DecoderConfig, init_decoder, tables.STRUCTURE_VAE),
    "dinov2": (DINOv2Config, init_dinov2, tables.DINOV2_HUB),
    "dinov2_hf": (DINOv2Config, init_dinov2, tables.DINOV2_HF),
}


@functools.cache
def slots(kind: Kind, config: Config) -> tuple[convert.Slot, ...]:
    """Every leaf of the model with its torch names; from shapes alone, nothing is allocated."""
    if kind not in _MODELS:
        raise WeightError(f"model kind {kind!r}: expected {', '.join(_MODELS)}")
    config_class, init, rules = _MODELS[kind]
    if not isinstance(config, config_class):
        raise WeightError(f"{kind} needs a {config_class.__name__}, got {type(config).__name__}")
    return convert.plan(rules, jax.eval_shape(lambda key: init(config, key), jax.random.key(0)))


def to_torch(
    kind: Kind, config: Config, params: Mapping, *, dtype: Any = None, half: Any = None
) -> dict[str, np.ndarray]:
    """Our parameters -> torch state dict of numpy arrays.

    Args:
      params: the base alone; strip or merge an adapter first.
      dtype: type of every tensor; None keeps each as it is.
      half: type of the tensors that the published checkpoints keep in 16 bits; with
        `dtype=float32, half=float16` the result has the released types.

    Raises:
      WeightError: `params` are not those of `config`, or overflow in the asked type.
    """
    if adapter_leaves(dict(params)):
        raise WeightError(f"{kind}: the parameters hold LoRA leaves: strip or merge them first")
    return convert.export(slots(kind, config), params, cast=convert.Cast(dtype, half))


def from_torch(
    kind: Kind,
    config: Config,
    tensors: Mapping[str, np.ndarray],
    *,
    source: str = "the state dict",
    dtype: Any = None,
    half: Any = None,
    place: Callable[[np.ndarray], Any] = jnp.asarray,
) -> dict:
    """Torch state dict -> our parameters (nested dicts, block leaves stacked on axis 0).

    Args:
      tensors: name -> numpy array; `files.read(path).tensors` maps a file without reading it all.
      source: what an error calls them, usually the path.
      dtype, half: as in `to_torch`.
      place: called on each finished leaf (numpy); by default it goes to the default device.

    Raises:
      WeightError: one report of every missing, unexpected, misshapen or mistyped tensor.
    """
    return convert.load(
        slots(kind, config),
        tensors,
        source=source,
        target=f"{kind} weights of {config}",
        cast=convert.Cast(dtype, half),
        place=place,
    )


def check_finite(kind: Kind, config: Config, params: Mapping, *, source: str) -> None:
    """Finds NaN and infinity where the parameters are, without bringing them to the host.

    Raises:
      WeightError: names the tensors (all parts of a joined one).
    """
    finite = jax.device_get(_finite(slots(kind, config), convert.flatten(params)))
    problems = []
    for slot in slots(kind, config):
        flags = np.atleast_1d(finite[slot.path])
        names = np.reshape(slot.names, (len(flags), -1))[~flags].reshape(-1)
        problems += [Problem("value", str(name), "holds NaN or infinity") for name in names]
    if problems:
        raise report(source, f"{kind} weights that can be used", problems)


@functools.partial(jax.jit, static_argnums=0)
def _finite(slots: tuple[convert.Slot, ...], leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Path -> whether all numbers are finite, by block where the leaf is stacked."""
    return {
        slot.path: jnp.isfinite(leaf).all(axis=tuple(range(int(slot.rule.stacked), leaf.ndim)))
        for slot in slots
        for leaf in [leaves[slot.path]]
    }
