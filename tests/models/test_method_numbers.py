"""Flow path, sampler and objectives against numbers worked out by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dso_jax import flow, objectives
from dso_jax.sampler import SamplerConfig, sample

SHAPE = (2, 1, 1, 1, 2)


def field(*values):
    """(2,1,1,1,2): two samples of two numbers each."""
    return jnp.float32(values).reshape(SHAPE)


def test_path_runs_from_data_to_noise():
    x0, eps = field(1, 2, 3, 4), field(5, 6, 7, -4)
    at = flow.interpolate(x0, eps, jnp.float32([0.25, 0.5]))
    np.testing.assert_array_equal(at, field(2, 3, 5, 0))
    np.testing.assert_array_equal(flow.velocity(x0, eps), field(4, 4, 4, -8))


def test_training_times_are_logit_normal():
    t = flow.logit_normal(jax.random.key(0), (40_000,), mean=1.0, std=0.5)
    logit = jnp.log(t) - jnp.log1p(-t)
    # The standard error of the mean is 0.5 / 200, of the deviation about 0.7 of that.
    assert abs(float(logit.mean()) - 1.0) < 4 * 0.0025
    assert abs(float(logit.std()) - 0.5) < 4 * 0.0018
    assert 0 < float(t.min()) < float(t.max()) < 1


def test_sampler_times():
    """t = 3u / (1 + 2u) at u = k/12 is 3k / (12 + 2k)."""
    k = np.arange(12, -1, -1)
    np.testing.assert_allclose(flow.timesteps(12, 3.0), 3 * k / (12 + 2 * k), rtol=1e-14)
    np.testing.assert_array_equal(flow.timesteps(4, 1.0), [1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(("steps", "guided", "calls"), [(12, 10, 22), (25, 19, 44)])
def test_guided_steps_and_network_calls(steps, guided, calls):
    """t = 0.5 is met exactly at 12 steps, and the interval is closed."""
    config = SamplerConfig(steps=steps)
    assert config.guided().sum() == guided
    rows = []

    def velocity(x, t, cond):
        jax.debug.callback(lambda _: rows.append(x.shape[0]), t)
        return jnp.zeros_like(x)

    sample(velocity, jnp.ones(SHAPE), jnp.ones((2, 1, 1)), config).block_until_ready()
    jax.effects_barrier()
    assert len(rows) == steps
    assert sum(rows) == calls * SHAPE[0]


def test_guidance_formula():
    """v = a + b c is linear in the condition, so guided it is a + (1 + w) b c.

    The guided steps run from t = 1 to 6/16, the first time below 0.5; the path is then
    x - a - b c ((1 + w) 10/16 + 6/16).
    """
    a, b, w = 0.5, 0.25, 7.5

    def velocity(x, t, cond):
        return jnp.full_like(x, a) + b * cond.sum(axis=(1, 2)).reshape(-1, 1, 1, 1, 1)

    cond = jnp.float32([2.0, -1.0]).reshape(2, 1, 1)
    got = sample(velocity, field(1, 2, 3, 4), cond, SamplerConfig(guidance_weight=w))
    span = (1 + w) * 10 / 16 + 6 / 16
    expected = field(1, 2, 3, 4) - a - b * span * field(2, 2, -1, -1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_times_reach_the_network_unscaled_and_in_order():
    seen = []

    def velocity(x, t, cond):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return jnp.zeros_like(x)

    config = SamplerConfig(steps=4, guidance_weight=0.0)
    sample(velocity, jnp.ones(SHAPE), jnp.ones((2, 1, 1)), config).block_until_ready()
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [1, 0.9, 0.75, 0.5], rtol=1e-6)


def test_sampler_recovers_data_on_a_straight_path():
    """With the true constant velocity, any number of steps lands on x0."""
    x0, eps = field(1, 2, 3, 4), field(0, -1, 2, 8)
    got = sample(
        lambda x, t, cond: eps - x0, eps, jnp.zeros((2, 1, 1)), SamplerConfig(guidance_weight=0.0)
    )
    np.testing.assert_allclose(got, x0, atol=1e-5)


def test_flow_error_is_a_mean_for_each_sample():
    x0, eps = field(0, 0, 1, 1), field(1, 2, 1, 1)
    got = objectives.flow_error(
        lambda x, t, cond: jnp.zeros_like(x), x0, eps, jnp.float32([0.3, 0.6]), jnp.zeros((2, 1, 1))
    )
    np.testing.assert_allclose(got, [2.5, 0.0])


W, L = jnp.float32([1.0, 2.0]), jnp.float32([3.0, 5.0])


def test_sft_is_the_mean_of_the_winners():
    assert objectives.sft(W) == 1.5


def test_dpo_starts_at_ln_2():
    assert objectives.dpo(W, L, W, L) == jnp.float32(math.log(2))


def test_dpo_by_hand():
    """Margins (w - w_ref) - (l - l_ref) of -0.01 and +0.02 with beta 500: arguments 2.5 and -5."""
    ref_w, ref_l = W - jnp.float32([0.0, 0.02]), L - jnp.float32([0.01, 0.0])
    expected = (math.log1p(math.exp(-2.5)) + math.log1p(math.exp(5))) / 2
    np.testing.assert_allclose(objectives.dpo(W, L, ref_w, ref_l, 500.0), expected, rtol=1e-4)


def test_dpo_without_losers_ignores_them():
    got = objectives.dpo(W, L + 7, W - 0.01, L, 500.0, loser_weight=0.0)
    np.testing.assert_allclose(got, math.log1p(math.exp(2.5)), rtol=1e-4)


def test_dro_paired_by_hand():
    assert objectives.dro_paired(W, L) == -2.5
    assert objectives.dro_paired(W, L, loser_weight=0.25) == 0.5


def test_dro_unpaired_weights_by_label():
    """Eq. 5 over the batch's own label mix: (1 + 2 - 3) / 3, whatever the ratio of labels."""
    errors = jnp.float32([1.0, 2.0, 3.0])
    assert objectives.dro_unpaired(errors, jnp.array([True, True, False])) == 0.0
    assert objectives.dro_unpaired(errors, jnp.array([False, False, False])) == -2.0


@pytest.mark.parametrize("stable", [[True, False], [False, True]])
def test_a_step_of_unpaired_dro_prefers_the_stable_sample(stable):
    """One gradient step lowers the error on a stable sample and raises it on an unstable one.

    The network is linear in the condition, and the conditions are orthogonal: each sample has its
    own weights, as two objects with different images nearly have.
    """
    x0, eps = field(1, 2, 3, 4), field(0, 1, -1, 2)
    t, cond = jnp.float32([0.3, 0.8]), jnp.eye(2).reshape(2, 1, 2)
    stable = jnp.array(stable)

    def errors(theta):
        def velocity(x, t, cond):
            return jnp.einsum("bsd,d...->b...", cond, theta) + 0.1 * x

        return objectives.flow_error(velocity, x0, eps, t, cond)

    theta = jnp.zeros(SHAPE)
    gradient = jax.grad(lambda theta: objectives.dro_unpaired(errors(theta), stable))(theta)
    change = errors(theta - 0.1 * gradient) - errors(theta)
    np.testing.assert_array_equal(change < 0, stable)
    assert float(jnp.abs(change).min()) > 1e-3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"name": "ppo"}, "ppo"),
        ({"pairing": "triples"}, "triples"),
        ({"name": "dpo", "pairing": "unpaired"}, "dpo"),
    ],
)
def test_objective_config_refuses(settings, named):
    with pytest.raises(ValueError, match=f"objective.*{named}"):
        objectives.ObjectiveConfig(**settings)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"guidance_interval": (0.9, 0.2)}], ids=["steps", "interval"]
)
def test_sampler_config_refuses(settings):
    with pytest.raises(ValueError, match=f"sampler.{next(iter(settings))}"):
        SamplerConfig(**settings)
