"""The embedded generator: its training code, and whether what ships is fit for its purpose."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sim_mjx
from dso_jax.cli import main
from dso_jax.models import apply_decoder, apply_encoder, init_decoder, init_encoder
from dso_jax.toybox import check, pretrain

FAST = sim_mjx.Protocol.preset("fast")


def test_fit_finds_the_mean_of_its_data():
    data = jnp.asarray(np.random.default_rng(0).normal(3.0, 0.1, 64), jnp.float32)
    found = pretrain.fit(
        lambda params, rows, key: jnp.square(params["x"] - data[rows]).mean(),
        {"x": jnp.zeros(())},
        len(data),
        steps=300,
        batch=16,
        learning_rate=0.1,
        ema=0.9,
        key=jax.random.key(0),
        name="mean",
    )
    assert abs(float(found["x"]) - float(data.mean())) < 0.1


def test_a_loss_that_is_not_finite_stops_the_training():
    with pytest.raises(FloatingPointError, match="bad: loss is not finite"):
        pretrain.fit(
            lambda params, rows, key: jnp.log(params["x"] - 1.0) + 0.0 * rows.sum(),
            {"x": jnp.zeros(())},
            4,
            steps=2,
            batch=2,
            learning_rate=0.1,
            ema=0.9,
            key=jax.random.key(0),
            name="bad",
        )


def test_scaled_latents_decode_to_the_same_logits():
    encoder = init_encoder(pretrain.ENCODER, jax.random.key(0))
    decoder = init_decoder(pretrain.DECODER, jax.random.key(1))
    solid = jax.random.bernoulli(jax.random.key(2), 0.1, (1, 1, 32, 32, 32)).astype(jnp.float32)
    mean, logvar = apply_encoder(pretrain.ENCODER, encoder, solid)
    scaled_encoder, scaled_decoder = pretrain.scale_latents(encoder, decoder, 2.5)
    scaled_mean, scaled_logvar = apply_encoder(pretrain.ENCODER, scaled_encoder, solid)
    np.testing.assert_allclose(scaled_mean, 2.5 * mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scaled_logvar, logvar + 2 * np.log(2.5), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        apply_decoder(pretrain.DECODER, scaled_decoder, scaled_mean),
        apply_decoder(pretrain.DECODER, decoder, mean),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.slow
def test_the_shipped_generator_is_fit_for_its_purpose():
    """The gates of the toybox: labels survive the autoencoder, 15-40 % of what is made falls."""
    figures = check.check("toybox", FAST, objects=132, samples=3)
    assert figures["truth_stable"] >= 0.97
    assert figures["label_kept"] >= 0.95
    assert 0.60 <= figures["stable"] <= 0.85
    assert figures["iou"] >= 1.5 * figures["iou_shuffled_family"] > figures["iou_shuffled"]
    assert figures["broken"] <= 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "pretrain or check"),
        (["check", "--protocol", "slow"], "protocol 'slow'"),
        (["check", "--objects", "0"], "--objects and --samples"),
        (["check", "--base", "nowhere"], r"nowhere/pipeline\.json"),
    ],
)
def test_unusable_arguments_end_before_any_work(arguments, message, capsys):
    assert main.main(["toybox", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
