"""What is logged about a batch: the figures in which a preference run shows that it goes bad."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from dso_jax.objectives import ObjectiveConfig
from dso_jax.training.losses import Comparison, objective

TIME_BUCKETS = 4  # equal parts of [0, 1]; the last is next to the noise
Figures = dict[str, Float[Array, ""]]


def diagnose(config: ObjectiveConfig, found: Comparison) -> Figures:
    """Means over a batch.

    `win_drift` and `lose_drift` are by how much the policy's error is above the reference's,
    `ref_distance` is the mean squared difference of their velocities. `margin` is by how much the
    policy's error fell further on winners than on losers, and `implicit_accuracy` the share of
    pairs where it did (ties count half); for single samples, over all pairs of a stable and an
    unstable one. Errors and drifts come a second time by time: `win_drift_t0` over the groups with
    t below 1 / TIME_BUCKETS, and so on; NaN where the batch has none.
    """
    err, ref, stable = found.err, found.ref, found.stable
    drift = err - ref
    if stable is None:
        win, lose, win_drift, lose_drift = err[:, 0], err[:, 1], drift[:, 0], drift[:, 1]
        margins, weight = lose_drift - win_drift, None
        is_win = is_lose = None
    else:
        win = lose = err[:, 0]
        win_drift = lose_drift = drift[:, 0]
        margins, weight = drift[None, :, 0] - drift[:, :1], stable[:, None] & ~stable[None]
        is_win, is_lose = stable, ~stable

    preferred = (jnp.sign(margins) + 1) / 2
    columns = {
        "loss_win": (win, is_win),
        "loss_lose": (lose, is_lose),
        "win_drift": (win_drift, is_win),
        "lose_drift": (lose_drift, is_lose),
        "ref_distance": (found.distance.mean(axis=1), None),
    }
    figures = {name: jnp.mean(values, where=where) for name, (values, where) in columns.items()}
    figures |= {
        "loss": objective(config, err, ref, stable, found.gap),
        "margin": jnp.mean(margins, where=weight),
        "implicit_accuracy": jnp.mean(preferred, where=weight),
    }
    if found.gap is not None:
        figures["small_gaps"] = jnp.mean(~(found.gap >= config.min_tilt_gap))
    bucket = jnp.minimum((found.t * TIME_BUCKETS).astype(jnp.int32), TIME_BUCKETS - 1)
    for number in range(TIME_BUCKETS):
        for name, (values, where) in columns.items():
            inside = bucket == number
            inside = inside if where is None else inside & where
            figures[f"{name}_t{number}"] = jnp.mean(values, where=inside)
    return figures
