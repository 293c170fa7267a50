"""Trains the toybox generator: structure autoencoder first, then the flow over its latents.

Minutes on one GPU. The command, the seed and the figures go into the weight files' metadata.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dso_jax import flow, objectives
from dso_jax.models import (
    DECODER_SIZES,
    ENCODER_SIZES,
    FLOW_SIZES,
    apply_decoder,
    apply_encoder,
    apply_flow,
    init_decoder,
    init_encoder,
    init_flow,
)
from dso_jax.sampler import SamplerConfig
from dso_jax.toybox import condition, make_objects, render, split

log = logging.getLogger(__name__)
FLOW, DECODER, ENCODER = FLOW_SIZES["toybox"], DECODER_SIZES["toybox"], ENCODER_SIZES["toybox"]
# Few steps and little guidance: sharper samples would hardly ever fall.
SAMPLER = SamplerConfig(steps=8, guidance_weight=1.0)
LOG_EVERY = 500

Loss = Callable[[dict, jax.Array, jax.Array], jax.Array]  # (params, rows of data, key)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights."""

    seed: int = 0
    objects: int = 24576  # of the training split
    views: int = 1
    vae_steps: int = 5000
    vae_batch: int = 64
    vae_learning_rate: float = 1e-3
    kl_weight: float = 1e-4  # beside the mean binary cross-entropy a voxel
    flow_steps: int = 8000
    flow_batch: int = 512
    flow_learning_rate: float = 6e-4
    drop_condition: float = 0.1  # share of samples trained without condition, for guidance
    ema: float = 0.999
    workers: int = 1  # processes that draw objects


def fit(
    loss: Loss,
    params: dict,
    count: int,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    ema: float,
    key: jax.Array,
    name: str,
) -> dict:
    """AdamW with warm-up and cosine decay over random rows 0..count-1; returns averaged weights.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 50 + 1, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01)
    )

    def step(carry: tuple, index: jax.Array) -> tuple[tuple, jax.Array]:
        params, average, state = carry
        key_rows, key_loss = jax.random.split(jax.random.fold_in(key, index))
        rows = jax.random.randint(key_rows, (batch,), 0, count)
        value, gradient = jax.value_and_grad(loss)(params, rows, key_loss)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, average, params)
        return (params, average, state), value

    run = jax.jit(lambda carry, indices: jax.lax.scan(step, carry, indices), donate_argnums=0)
    carry = (params, jax.tree.map(jnp.copy, params), optimizer.init(params))
    start = time.monotonic()
    for first in range(0, steps, LOG_EVERY):
        carry, losses = run(carry, jnp.arange(first, min(first + LOG_EVERY, steps)))
        value = float(losses.mean())
        rate = (first + len(losses)) * batch / (time.monotonic() - start)
        log.info("%s: step %d, loss %.5f, %.0f samples/s", name, first + len(losses), value, rate)
        if not np.isfinite(value):
            raise FloatingPointError(
                f"{name}: loss is not finite before step {first + len(losses)}"
            )
    return carry[1]


def fit_autoencoder(config: PretrainConfig, solid: jax.Array) -> tuple[dict, dict]:
    """(encoder, decoder) parameters; latents are scaled to unit variance over the training set."""
    key_encoder, key_decoder, key_fit = jax.random.split(jax.random.key(config.seed), 3)
    params = {
        "encoder": init_encoder(ENCODER, key_encoder),
        "decoder": init_decoder(DECODER, key_decoder),
    }

    def loss(params: dict, rows: jax.Array, key: jax.Array) -> jax.Array:
        x = solid[rows][:, None].astype(jnp.float32)
        mean, logvar = apply_encoder(ENCODER, params["encoder"], x)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        logits = apply_decoder(DECODER, params["decoder"], z)
        kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean()
        return optax.sigmoid_binary_cross_entropy(logits, x).mean() + config.kl_weight * kl

    params = fit(
        loss,
        params,
        len(solid),
        steps=config.vae_steps,
        batch=config.vae_batch,
        learning_rate=config.vae_learning_rate,
        ema=config.ema,
        key=key_fit,
        name="autoencoder",
    )
    std = float(jnp.std(encode(params["encoder"], solid[:4096])))
    return scale_latents(params["encoder"], params["decoder"], 1.0 / std)


def scale_latents(encoder: dict, decoder: dict, scale: float) -> tuple[dict, dict]:
    """The same autoencoder with `scale` times its latents: the flow wants unit variance."""
    mean, logvar = jnp.split(encoder["out_layer"]["2"]["kernel"], 2, axis=-1)
    bias_mean, bias_logvar = jnp.split(encoder["out_layer"]["2"]["bias"], 2)
    head = {
        "kernel": jnp.concatenate([mean * scale, logvar], -1),
        "bias": jnp.concatenate([bias_mean * scale, bias_logvar + 2 * np.log(scale)]),
    }
    encoder = encoder | {"out_layer": encoder["out_layer"] | {"2": head}}
    entry = decoder["input_layer"]
    decoder = decoder | {"input_layer": entry | {"kernel": entry["kernel"] / scale}}
    return encoder, decoder


def encode(encoder: dict, solid: jax.Array, batch: int = 512) -> jax.Array:
    """(N,32,32,32) occupancy -> (N,8,8,8,8) latent means."""
    run = jax.jit(lambda p, x: apply_encoder(ENCODER, p, x[:, None].astype(jnp.float32))[0])
    return jnp.concatenate(
        [run(encoder, solid[i : i + batch]) for i in range(0, len(solid), batch)]
    )


def fit_flow(config: PretrainConfig, latents: jax.Array, conditions: jax.Array) -> dict:
    """Flow parameters for latents (N,8,8,8,8) and the views' conditions (N,V,S,D)."""
    key_init, key_fit = jax.random.split(jax.random.key(config.seed + 1))

    def loss(params: dict, rows: jax.Array, key: jax.Array) -> jax.Array:
        key_t, key_eps, key_view, key_drop = jax.random.split(key, 4)
        x0 = latents[rows]
        view = jax.random.randint(key_view, rows.shape, 0, conditions.shape[1])
        keep = jax.random.bernoulli(key_drop, 1 - config.drop_condition, rows.shape)
        cond = conditions[rows, view].astype(jnp.float32) * keep[:, None, None]
        t = flow.logit_normal(key_t, rows.shape)
        eps = jax.random.normal(key_eps, x0.shape)
        return objectives.flow_error(
            lambda x, t, c: apply_flow(FLOW, params, x, t, c), x0, eps, t, cond
        ).mean()

    return fit(
        loss,
        init_flow(FLOW, key_init),
        len(latents),
        steps=config.flow_steps,
        batch=config.flow_batch,
        learning_rate=config.flow_learning_rate,
        ema=config.ema,
        key=key_fit,
        name="flow",
    )


def draw_objects(config: PretrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Training objects: occupancy (N,32,32,32) and conditions of every view (N,V,S,D) in fp16."""
    solid = make_objects(split("train", config.objects), config.workers)
    views = [condition(render(solid, view)).astype(np.float16) for view in range(config.views)]
    return solid, np.stack(views, 1)


def pretrain(config: PretrainConfig) -> tuple[dict[str, dict], dict[str, Any]]:
    """Train all three networks.

    Returns:
      ({"flow", "decoder", "encoder"} -> parameters, what made them).
    """
    start = time.monotonic()
    solid, conditions = draw_objects(config)
    log.info("drew %d objects in %.0f s", len(solid), time.monotonic() - start)
    device_solid = jnp.asarray(solid, jnp.bool_)
    encoder, decoder = fit_autoencoder(config, device_solid)
    latents = encode(encoder, device_solid)
    weights = {
        "flow": fit_flow(config, latents, jnp.asarray(conditions)),
        "decoder": decoder,
        "encoder": encoder,
    }
    origin = {
        **{name: value for name, value in asdict(config).items() if name != "workers"},
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "seconds": round(time.monotonic() - start),
    }
    return weights, origin
