"""From a batch to per-sample errors, and from errors to the objective and to what is logged.

Shapes: G groups (pairs, or single samples when unpaired), M members of a group (winner first;
1 when unpaired), A micro-batches, (C,R,R,R) a latent, S condition tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dso_jax import flow, objectives
from dso_jax.objectives import ObjectiveConfig
from dso_jax.training.policy import Velocity


class Groups(NamedTuple):
    """Samples with everything random about them drawn. Members of a group share t and cond."""

    x: Float[Array, "G M C R R R"]
    eps: Float[Array, "G M C R R R"]
    t: Float[Array, " G"]
    cond: Float[Array, "G S D"]
    stable: Bool[Array, " G"] | None  # labels of single samples


def draw(batch: dict, key: PRNGKeyArray, config: ObjectiveConfig) -> Groups:
    """Draw times and noise for a batch of `dso_jax.data.batches`, in fp32.

    The members of a pair have independent noise, as in the reference, unless `share_noise`.
    """
    paired = "win" in batch
    x = jnp.stack([batch["win"], batch["lose"]], 1) if paired else batch["x"][:, None]
    x = x.astype(jnp.float32)
    time_key, noise_key = jax.random.split(key)
    shape = (x.shape[0], 1 if config.share_noise else x.shape[1], *x.shape[2:])
    eps = jnp.broadcast_to(jax.random.normal(noise_key, shape), x.shape)
    t = flow.logit_normal(time_key, x.shape[:1], config.time_mean, config.time_std)
    return Groups(x, eps, t, batch["cond"].astype(jnp.float32), batch.get("stable"))


def split(groups: Groups, parts: int) -> Groups:
    """(A, G/A, ...): micro-batch a takes every A-th group, so none changes its device."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), groups
    )


def errors(velocity: Velocity, groups: Groups) -> Float[Array, "G M"]:
    """Flow-matching error of every member."""
    members = groups.x.shape[1]

    def rows(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(-1, *leaf.shape[2:])

    t, cond = (jnp.repeat(leaf, members, axis=0) for leaf in (groups.t, groups.cond))
    error = objectives.flow_error(velocity, rows(groups.x), rows(groups.eps), t, cond)
    return error.reshape(-1, members)


def objective(
    config: ObjectiveConfig,
    err: Float[Array, "G M"],
    ref: Float[Array, "G M"] | None,
    stable: Bool[Array, " G"] | None,
) -> Float[Array, ""]:
    """The loss that `config` names; `ref` is read by DPO only, `stable` by unpaired DRO."""
    if config.name == "sft":
        return objectives.sft(err[:, 0])
    if config.name == "dpo":
        assert ref is not None
        return objectives.dpo(
            err[:, 0], err[:, 1], ref[:, 0], ref[:, 1], config.beta, config.loser_weight
        )
    if config.pairing == "unpaired":
        assert stable is not None
        return objectives.dro_unpaired(err[:, 0], stable, config.loser_weight)
    return objectives.dro_paired(err[:, 0], err[:, 1], config.loser_weight)


def diagnose(
    config: ObjectiveConfig,
    err: Float[Array, "G M"],
    ref: Float[Array, "G M"],
    stable: Bool[Array, " G"] | None,
) -> dict[str, Float[Array, ""]]:
    """What is logged about a batch.

    `margin` is by how much the policy's error fell further on winners than on losers, and
    `implicit_accuracy` the share of pairs where it did (ties count half); for single samples, over
    all pairs of a stable and an unstable one.
    """
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
    return {
        "loss": objective(config, err, ref, stable),
        "loss_win": jnp.mean(win, where=is_win),
        "loss_lose": jnp.mean(lose, where=is_lose),
        "win_drift": jnp.mean(win_drift, where=is_win),
        "lose_drift": jnp.mean(lose_drift, where=is_lose),
        "margin": jnp.mean(margins, where=weight),
        "implicit_accuracy": jnp.mean(preferred, where=weight),
    }
