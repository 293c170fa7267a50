"""Small models that together take every branch of the published configurations."""

from __future__ import annotations

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np

from dso_jax.models import DecoderConfig, DINOv2Config, EncoderConfig, FlowConfig, init_flow

# Widths 20 and 40 are not divisible by 6, so the positional embedding has a zero tail.
FLOWS = {
    "patch1": FlowConfig(
        resolution=3, model_channels=20, cond_channels=12, num_blocks=2, num_heads=2
    ),
    "patch2_share_mod": FlowConfig(
        resolution=4,
        in_channels=3,
        out_channels=5,
        model_channels=24,
        cond_channels=7,
        num_blocks=3,
        num_heads=3,
        patch_size=2,
        share_mod=True,
    ),
    "no_qk_norm": FlowConfig(
        resolution=2,
        model_channels=40,
        cond_channels=40,
        num_blocks=1,
        num_heads=4,
        mlp_ratio=2.5,
        qk_rms_norm=False,
    ),
    "both_qk_norms": FlowConfig(
        resolution=6,
        in_channels=2,
        out_channels=2,
        model_channels=32,
        cond_channels=16,
        num_blocks=2,
        num_heads=2,
        patch_size=3,
        qk_rms_norm_cross=True,
    ),
    "cross_qk_norm_only": FlowConfig(
        resolution=2,
        model_channels=20,
        cond_channels=8,
        num_blocks=2,
        num_heads=1,
        qk_rms_norm=False,
        qk_rms_norm_cross=True,
        share_mod=True,
    ),
}

DECODERS = {
    "three_levels": DecoderConfig(channels=(12, 6, 4)),
    "uneven": DecoderConfig(
        out_channels=2,
        latent_channels=3,
        channels=(5, 9),
        num_res_blocks=1,
        num_res_blocks_middle=1,
    ),
}

ENCODERS = {
    "three_levels": EncoderConfig(channels=(4, 6, 12)),
    "uneven": EncoderConfig(
        in_channels=2,
        latent_channels=3,
        channels=(9, 5),
        num_res_blocks=1,
        num_res_blocks_middle=1,
    ),
}

DINOV2S = {
    "registers": DINOv2Config(24, 2, 3, patch_size=7, image_size=28),
    "swiglu": DINOv2Config(
        20, 3, 1, mlp_ratio=2.5, patch_size=4, image_size=20, num_registers=1, ffn="swiglu"
    ),
    "hub_plain": DINOv2Config(
        16,
        2,
        2,
        patch_size=5,
        image_size=25,
        num_registers=0,
        interpolate_antialias=False,
        interpolate_offset=0.1,
    ),
    "hugging_face_plain": DINOv2Config(
        12,
        1,
        4,
        mlp_ratio=1.5,
        patch_size=3,
        image_size=9,
        num_registers=0,
        interpolate_antialias=False,
    ),
}


def arguments(config: FlowConfig | DecoderConfig | EncoderConfig | DINOv2Config) -> dict:
    """What the torch class takes; for TRELLIS's models, as their JSON files have it."""
    ours = asdict(config)
    for ours_alone in ("pe_mode", "norm_type"):  # the reference has one choice of each
        ours.pop(ours_alone, None)
    return ours


def random_params(config: FlowConfig) -> dict:
    """Random in every leaf: the initialisation has layers of zeros, which hide faults."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_flow(config, jax.random.key(0)))
    return jax.tree.map(
        lambda s: jnp.float32(rng.normal(size=s.shape) * s.shape[-1] ** -0.5), shapes
    )
