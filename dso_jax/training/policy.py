"""Policy and reference: one set of base weights, with and without what trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dso_jax.config import Config
from dso_jax.errors import UsageError
from dso_jax.models import Execution, FlowConfig, LoRAConfig, apply_flow, lora
from dso_jax.training import sharding

Velocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Weights(NamedTuple):
    """The weights that no step changes.

    Attributes:
        frozen: the policy's parameters, `optax.MaskedNode()` where a leaf trains.
        base: the base's parameters if some of them train, so that the reference keeps the old
            ones; None if only an adapter trains, for then they are all in `frozen`.
    """

    frozen: dict
    base: dict | None


@dataclasses.dataclass(frozen=True)
class Policy:
    """How parameters become velocities; all of it is static under jit.

    Attributes:
        flow: the transformer's shape.
        lora: the adapter; None when weights of the base train without one.
        execution: how it is carried out.
        mesh: over which the weights may be spread; None if they are not.
    """

    flow: FlowConfig
    lora: LoRAConfig | None
    execution: Execution
    mesh: Mesh | None = None

    def velocity(self, trainable: dict, weights: Weights) -> Velocity:
        """(x (B,C,R,R,R), t (B,), cond (G,S,D)) -> v, by the policy; B / G samples an image."""
        return self._apply(lora.combine(trainable, weights.frozen), self.lora)

    def reference(self, weights: Weights) -> Velocity:
        """As `velocity`, by the base with the adapter off."""
        base = lora.strip(weights.frozen) if weights.base is None else weights.base
        return self._apply(base, None)

    def _apply(self, params: dict, adapter: LoRAConfig | None) -> Velocity:
        def apply(x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
            return apply_flow(
                self.flow,
                params,
                x,
                t,
                cond,
                lora=adapter,
                execution=self.execution,
                gather=sharding.gather(self.mesh),
            )

        return apply


def build(
    config: Config,
    base: Any,
    key: jax.Array,
    mesh: Mesh | None = None,
    start: tuple[dict, LoRAConfig] | None = None,
) -> tuple[Policy, dict, Weights]:
    """Policy, its trainable leaves and the frozen weights.

    `trainable: all` trains the base itself; patterns attach an adapter if they name any of its
    leaves.

    Args:
        config: the run's.
        base: `flow_config` and `flow_params` of a published generator.
        key: for LoRA's A.
        mesh: over which the weights are spread, if they are.
        start: leaves and settings of an adapter to go on from; a fresh one by default.

    Raises:
        UsageError: a pattern or a LoRA target that matches nothing, or a start of other settings.
    """
    system, params = config.system, base.flow_params
    try:
        if config.trainable == ("all",):
            adapter, full = None, params
            mask = lora.trainable_mask(full, config.trainable)
        else:
            adapter, full = config.lora, _with_adapter(config, params, key, start)
            mask = lora.trainable_mask(full, config.trainable)
            if not any(jax.tree.leaves(lora.adapter_leaves(mask))):
                adapter, full, mask = None, params, lora.strip(mask)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if start is not None and adapter is None:
        raise UsageError("train.init_adapter is given, but `trainable` names nothing of an adapter")
    trainable, frozen = lora.partition(full, mask)
    trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable)
    trains_base = any(jax.tree.leaves(lora.strip(mask)))
    weights = Weights(
        _cast_blocks(frozen, system.dtype),
        _cast_blocks(params, system.dtype) if trains_base else None,
    )
    return Policy(base.flow_config, adapter, system.execution, mesh), trainable, weights


def _with_adapter(
    config: Config, params: dict, key: jax.Array, start: tuple[dict, LoRAConfig] | None
) -> dict:
    if start is None:
        return lora.attach(params, config.lora, key)
    leaves, found = start
    wanted = dataclasses.asdict(config.lora)
    for name, value in dataclasses.asdict(found).items():
        same = sorted(value) == sorted(wanted[name]) if name == "targets" else value == wanted[name]
        if not same:
            raise UsageError(
                f"train.init_adapter: its {name} is {value}, lora.{name} is {wanted[name]}; an "
                "adapter goes on with the settings it began with"
            )
    return lora.with_adapter(params, jax.tree.map(jnp.asarray, leaves))


def _cast_blocks(params: dict, dtype: str) -> dict:
    """The torso's linears in the type in which they are used, once instead of at every step."""

    def cast(path: tuple, leaf: jax.Array) -> jax.Array:
        in_torso = path[0].key == "blocks" and path[-1].key in ("kernel", "bias")
        return leaf.astype(dtype) if in_torso and "norm" not in path[-2].key else leaf

    return jax.tree_util.tree_map_with_path(cast, params)
