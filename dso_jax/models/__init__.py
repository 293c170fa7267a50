"""Models as pure functions over plain parameter trees (nested dicts of arrays)."""

from dso_jax.models.config import (
    DECODER_SIZES,
    ENCODER_SIZES,
    FLOW_SIZES,
    DecoderConfig,
    EncoderConfig,
    FlowConfig,
    LoRAConfig,
)
from dso_jax.models.structure_vae import apply_decoder, apply_encoder, init_decoder, init_encoder
from dso_jax.models.transformer import apply_flow, init_flow

__all__ = [
    "DECODER_SIZES",
    "ENCODER_SIZES",
    "FLOW_SIZES",
    "DecoderConfig",
    "EncoderConfig",
    "FlowConfig",
    "LoRAConfig",
    "apply_decoder",
    "apply_encoder",
    "apply_flow",
    "init_decoder",
    "init_encoder",
    "init_flow",
]
