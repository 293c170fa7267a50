"""Models as pure functions over plain parameter trees (nested dicts of arrays)."""

from dso_jax.models.config import (
    DECODER_SIZES,
    DINOV2_SIZES,
    ENCODER_SIZES,
    FLOW_SIZES,
    DecoderConfig,
    DINOv2Config,
    EncoderConfig,
    Execution,
    FlowConfig,
    LoRAConfig,
)
from dso_jax.models.dinov2 import apply_dinov2, init_dinov2
from dso_jax.models.multihead import Context
from dso_jax.models.structure_vae import apply_decoder, apply_encoder, init_decoder, init_encoder
from dso_jax.models.transformer import apply_flow, flow_context, init_flow

__all__ = [
    "DECODER_SIZES",
    "DINOV2_SIZES",
    "ENCODER_SIZES",
    "FLOW_SIZES",
    "Context",
    "DINOv2Config",
    "DecoderConfig",
    "EncoderConfig",
    "Execution",
    "FlowConfig",
    "LoRAConfig",
    "apply_decoder",
    "apply_dinov2",
    "apply_encoder",
    "apply_flow",
    "flow_context",
    "init_decoder",
    "init_dinov2",
    "init_encoder",
    "init_flow",
]
