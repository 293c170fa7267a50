"""The jitted training step, and the probe whose figures go into the log."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dso_jax.objectives import ObjectiveConfig
from dso_jax.training import diagnosis, losses, sharding
from dso_jax.training.losses import Groups
from dso_jax.training.policy import Policy, Weights


class TrainState(NamedTuple):
    """All that a step changes, and so all that a checkpoint holds."""

    step: jax.Array  # () int32: batches consumed
    trainable: dict  # fp32; `optax.MaskedNode()` where a parameter is frozen
    opt_state: Any
    skipped: jax.Array  # () int32: steps without an update since the start
    streak: jax.Array  # () int32: of these, the last ones in a row


def init_state(trainable: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    # The step donates the state, so nothing in it may share a buffer with the base or itself.
    trainable = jax.tree.map(jnp.copy, trainable)
    zeros = [jnp.zeros((), jnp.int32) for _ in range(3)]
    return TrainState(zeros[0], trainable, optimizer.init(trainable), zeros[1], zeros[2])


def make_step(
    policy: Policy,
    config: ObjectiveConfig,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    accumulation: int,
    mesh: Mesh,
) -> Callable[[TrainState, Weights, dict, jax.Array], tuple[TrainState, dict]]:
    """The jitted (state, weights, batch, key) -> (state, stats); `state` is donated.

    Gradients exist for the trainable leaves only. Randomness is `fold_in(key, state.step)`, so a
    resumed run draws what the uninterrupted one would have. A step whose loss or gradient is not
    finite changes nothing but the counters.
    """

    def loss(trainable: dict, groups: Groups, weights: Weights) -> jax.Array:
        if config.name == "sft":
            groups = groups._replace(x=groups.x[:, :1], eps=groups.eps[:, :1])
        err = losses.errors(policy.velocity(trainable, weights), groups)
        ref = None
        if config.name == "dpo":
            ref = losses.errors(policy.reference(weights), groups)
        return losses.objective(config, err, ref, groups.stable, groups.gap)

    def step(
        state: TrainState, weights: Weights, batch: dict, key: jax.Array
    ) -> tuple[TrainState, dict]:
        groups = losses.draw(batch, jax.random.fold_in(key, state.step), config)
        grad = jax.value_and_grad(functools.partial(loss, weights=weights))
        value, grads = _accumulate(grad, state.trainable, groups, accumulation)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        lr = rate(state.step - state.skipped)
        trainable = keep(optax.apply_updates(state.trainable, updates), state.trainable)
        state = TrainState(
            state.step + 1,
            trainable,
            keep(opt_state, state.opt_state),
            state.skipped + ~finite,
            jnp.where(finite, 0, state.streak + 1),
        )
        stats = {
            "lr": lr,
            "grad_norm": grad_norm,
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(trainable),
            "skipped": state.skipped,
            "streak": state.streak,
        }
        return state, stats

    return jax.jit(
        step, in_shardings=_inputs(mesh), out_shardings=sharding.replicated(mesh), donate_argnums=0
    )


def make_probe(
    policy: Policy, config: ObjectiveConfig, accumulation: int, mesh: Mesh
) -> Callable[[TrainState, Weights, dict, jax.Array], losses.Comparison]:
    """The jitted (state, weights, batch, key) -> comparison of policy and reference.

    On the batch that the step is about to see, with its draws, both without gradients. XLA rounds a
    forward pass that keeps residuals for a backward pass differently from one that does not; here
    both are the same program, so that on a CPU they agree to the bit before the first update, and
    objectives without a reference pay for it only in the steps that are logged.
    """

    def probe(
        state: TrainState, weights: Weights, batch: dict, key: jax.Array
    ) -> losses.Comparison:
        groups = losses.draw(batch, jax.random.fold_in(key, state.step), config)
        velocity, reference = policy.velocity(state.trainable, weights), policy.reference(weights)
        found = jax.lax.map(
            functools.partial(losses.compare, velocity, reference),
            losses.split(groups, accumulation),
        )
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    return jax.jit(probe, in_shardings=_inputs(mesh), out_shardings=sharding.by_example(mesh))


def make_diagnose(config: ObjectiveConfig, mesh: Mesh) -> Callable[..., diagnosis.Figures]:
    """The jitted `diagnosis.diagnose` of what a probe returns."""
    everywhere = sharding.replicated(mesh)
    return jax.jit(functools.partial(diagnosis.diagnose, config), out_shardings=everywhere)


def _inputs(mesh: Mesh) -> tuple:
    """Shardings of (state, weights, batch, key); weights stay as they were placed."""
    everywhere = sharding.replicated(mesh)
    return everywhere, None, sharding.by_example(mesh), everywhere


def _accumulate(grad: Callable, trainable: dict, groups: Groups, parts: int) -> tuple:
    """Mean of (loss, gradient) over `parts` micro-batches, one after another."""
    if parts == 1:
        return grad(trainable, groups)

    def add(total: tuple, micro: Groups) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, grad(trainable, micro)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
    total, _ = jax.lax.scan(add, zero, losses.split(groups, parts))
    return jax.tree.map(lambda leaf: leaf / parts, total)
