"""AdamW as the reference sets it: linear warm-up, then constant; clipped by the global norm."""

from __future__ import annotations

import optax

from dso_jax.config import OptimConfig


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Rate of update number `count` (from 0): 0 at 0, the full rate from `warmup_steps` on."""
    if config.warmup_steps == 0:
        return optax.constant_schedule(config.learning_rate)
    return optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Optimizer of a tree that holds trainable leaves only.

    It never sees a frozen weight, so the clip counts the trainable gradients alone and nothing
    needs a mask here.
    """
    b1, b2 = config.betas
    adamw = optax.adamw(
        learning_rate(config), b1=b1, b2=b2, eps=config.eps, weight_decay=config.weight_decay
    )
    if config.clip_norm == 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
