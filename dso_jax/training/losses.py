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
    stable: Bool[Array, " G"] | None = None  # labels of single samples
    gap: Float[Array, " G"] | None = None  # by how many degrees losers tilt more, where it counts


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
    return Groups(
        x, eps, t, batch["cond"].astype(jnp.float32), batch.get("stable"), batch.get("gap")
    )


def split(groups: Groups, parts: int) -> Groups:
    """(A, G/A, ...): micro-batch a takes every A-th group, so none changes its device."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), groups
    )


def errors(velocity: Velocity, groups: Groups) -> Float[Array, "G M"]:
    """Flow-matching error of every member."""
    x, eps, t, cond = _rows(groups)
    return objectives.flow_error(velocity, x, eps, t, cond).reshape(groups.x.shape[:2])


class Comparison(NamedTuple):
    """Policy and reference on the same draws of a batch, and what is known about its groups."""

    err: Float[Array, "G M"]  # of the policy
    ref: Float[Array, "G M"]  # of the reference
    distance: Float[Array, "G M"]  # mean squared difference of their velocities
    t: Float[Array, " G"]
    stable: Bool[Array, " G"] | None = None
    gap: Float[Array, " G"] | None = None


def compare(policy: Velocity, reference: Velocity, groups: Groups) -> Comparison:
    """Errors of both and how far apart they are."""
    x, eps, t, cond = _rows(groups)
    noisy, target = flow.interpolate(x, eps, t), flow.velocity(x, eps)
    ours, theirs = policy(noisy, t, cond), reference(noisy, t, cond)
    err, ref, distance = (
        objectives.squared_distance(a, b).reshape(groups.x.shape[:2])
        for a, b in ((ours, target), (theirs, target), (ours, theirs))
    )
    return Comparison(err, ref, distance, groups.t, groups.stable, groups.gap)


def _rows(groups: Groups) -> tuple[jax.Array, ...]:
    """x, eps and t with a row for every member; cond, which the members share, with one a group."""
    x, eps = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in (groups.x, groups.eps))
    return x, eps, jnp.repeat(groups.t, groups.x.shape[1], axis=0), groups.cond


def objective(
    config: ObjectiveConfig,
    err: Float[Array, "G M"],
    ref: Float[Array, "G M"] | None,
    stable: Bool[Array, " G"] | None,
    gap: Float[Array, " G"] | None = None,
) -> Float[Array, ""]:
    """The loss that `config` names.

    `ref` is read by DPO only, `stable` by unpaired DRO, `gap` with `min_tilt_gap`.
    """
    if config.name == "sft":
        return objectives.sft(err[:, 0])
    weight: objectives.Weight = config.loser_weight
    if config.min_tilt_gap:
        assert gap is not None
        weight = jnp.where(gap >= config.min_tilt_gap, weight, 0.0)  # NaN is no gap
    if config.name == "dpo":
        assert ref is not None
        return objectives.dpo(err[:, 0], err[:, 1], ref[:, 0], ref[:, 1], config.beta, weight)
    if config.pairing == "unpaired":
        assert stable is not None
        single = err[:, 0]
        if config.loser_clip is not None:
            single = jnp.where(stable, single, jnp.minimum(single, config.loser_clip))
        return objectives.dro_unpaired(single, stable, config.loser_weight)
    lose = err[:, 1]
    if config.loser_clip is not None:
        lose = jnp.minimum(lose, config.loser_clip)
    return objectives.dro_paired(err[:, 0], lose, weight)
