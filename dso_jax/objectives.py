"""Post-training objectives of DSO (arXiv 2503.22677) over per-sample flow-matching errors.

An error l is the mean over (C,R,R,R) of (v_theta(x_t, t, cond) - (eps - x0))^2; shapes are (B,).
"w" is the stable member of a pair (win), "l" the unstable one (lose).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dso_jax import flow

NAMES = ("sft", "dpo", "dro")
Weight = float | Float[Array, " B"]  # of the losers, one for all or one a pair


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised; the defaults are the reference code's DPO."""

    name: str = "dpo"  # sft | dpo | dro
    beta: float = 500.0  # DPO: strength of the reference, on *mean* squared errors
    # DRO: "paired" is the reference code (one stable, one unstable sample of an object);
    # "unpaired" is Eq. 5, single samples over the dataset's own label mix.
    pairing: str = "paired"
    loser_weight: float = 1.0  # below 1 the losers push less; 0 makes DRO the same as SFT
    # DRO: a loser whose error is above this pushes no more; None never stops it. The reference code
    # has no such bound, and so its loss has none below.
    loser_clip: float | None = None
    # Paired DRO and DPO: of a pair whose tilts differ by less than so many degrees, only the winner
    # is learned from: the label of such a pair is closer to chance. 0 takes every pair.
    min_tilt_gap: float = 0.0
    share_noise: bool = False  # one eps for both members of a pair (the reference draws two)
    time_mean: float = 1.0  # t = sigmoid(mean + std N(0,1))
    time_std: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"objective.name {self.name!r}: expected one of {', '.join(NAMES)}")
        if self.pairing not in ("paired", "unpaired"):
            raise ValueError(f"objective.pairing {self.pairing!r}: expected paired or unpaired")
        if self.pairing == "unpaired" and self.name != "dro":
            raise ValueError(
                f"objective.pairing 'unpaired' is defined for dro, not for {self.name}"
            )
        if self.loser_clip is not None and (self.name != "dro" or self.loser_clip <= 0):
            raise ValueError(
                f"objective.loser_clip {self.loser_clip}: expected a positive error, and dro"
            )
        if self.min_tilt_gap and (
            self.min_tilt_gap < 0 or self.name == "sft" or self.pairing == "unpaired"
        ):
            raise ValueError(
                f"objective.min_tilt_gap {self.min_tilt_gap}: expected degrees, and pairs of dpo "
                "or dro"
            )


def flow_error(
    velocity: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    x0: Float[Array, "B C R R R"],
    eps: Float[Array, "B C R R R"],
    t: Float[Array, " B"],
    cond: Float[Array, "G S D"],
) -> Float[Array, " B"]:
    """Mean squared error of the velocity for each sample, reduced in fp32."""
    predicted = velocity(flow.interpolate(x0, eps, t), t, cond)
    return squared_distance(predicted, flow.velocity(x0, eps))


def squared_distance(
    a: Float[Array, "B C R R R"], b: Float[Array, "B C R R R"]
) -> Float[Array, " B"]:
    """Mean squared difference of each sample, in fp32."""
    difference = a.astype(jnp.float32) - b.astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=tuple(range(1, a.ndim)))


def sft(err_w: Float[Array, " B"]) -> Float[Array, ""]:
    """Flow matching on stable samples alone."""
    return jnp.mean(err_w)


def dpo_margin(
    err_w: Float[Array, " B"],
    err_l: Float[Array, " B"],
    ref_w: Float[Array, " B"],
    ref_l: Float[Array, " B"],
    loser_weight: Weight = 1.0,
) -> Float[Array, " B"]:
    """(l_w - l_w_ref) - loser_weight (l_l - l_l_ref): negative where the winner is preferred."""
    return (err_w - ref_w) - loser_weight * (err_l - ref_l)


def dpo(
    err_w: Float[Array, " B"],
    err_l: Float[Array, " B"],
    ref_w: Float[Array, " B"],
    ref_l: Float[Array, " B"],
    beta: float = 500.0,
    loser_weight: Weight = 1.0,
) -> Float[Array, ""]:
    """-mean log sigmoid(-beta/2 margin), as the reference code; ln 2 where policy == reference.

    The paper's Eq. 7 has no 1/2 and sums squares with w(t) T; on means that is another beta.
    """
    margin = dpo_margin(err_w, err_l, ref_w, ref_l, loser_weight)
    return -jnp.mean(jax.nn.log_sigmoid(-0.5 * beta * margin))


def dro_paired(
    err_w: Float[Array, " B"], err_l: Float[Array, " B"], loser_weight: Weight = 1.0
) -> Float[Array, ""]:
    """mean(l_w - loser_weight l_l), as the reference code. Unbounded below: stop it early."""
    return jnp.mean(err_w - loser_weight * err_l)


def dro_unpaired(
    err: Float[Array, " B"], stable: Bool[Array, " B"], loser_weight: float = 1.0
) -> Float[Array, ""]:
    """Eq. 5: errors weighted +1 where stable, -1 where not, over the dataset's label mix."""
    return jnp.mean(jnp.where(stable, err, -loser_weight * err))
