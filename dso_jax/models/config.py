"""Sizes of the models: what a TRELLIS model `.json` holds, DINOv2, and the embedded toybox."""

from dataclasses import dataclass
from typing import Literal

from dso_jax.models import remat as remat_policies


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adaptation as PEFT defines it: y = base(x) + (alpha / rank) (x A) B."""

    rank: int = 64
    alpha: float = 128.0
    # Names of the linears that get a branch; DSO adapts attention only (spec: 120 linears).
    targets: tuple[str, ...] = ("to_q", "to_kv", "to_out", "to_qkv")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}")
        if not self.targets:
            raise ValueError("lora.targets is empty: no linear would be adapted")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Execution:
    """How the flow transformer is carried out; none of it changes what is computed beyond rounding.

    Which choice is fast depends on the GPU: `benchmarks/gpu_hlo.py` estimates, `benchmarks/run.py`
    times.
    """

    attention: Literal["auto", "xla", "cudnn"] = "auto"
    """Attention kernel; `auto` tries cuDNN on a GPU and falls back with a line in the log."""
    remat: str = "none"
    """What the backward pass keeps of each block, and what it computes again: `none` (keeps all),
    `products` (all but norms, modulation and GELU), `dots`, `attention`, `full` (keeps the block's
    input alone), or names joined by + from qkv, context, attention, stream, lora, mlp."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the transformer's torso; adapter, optimizer, norms and losses are always float32."""
    unroll: int = 1
    """Blocks that a turn of the loop over them runs; as many as there are leaves no loop: faster,
    but it compiles for minutes."""
    projections: Literal["fused", "split"] = "fused"
    """Queries, keys and values from one product and cut apart, or from a product each."""
    lora_product: Literal["beside", "joined"] = "beside"
    """x W and x A as two products, or as one by [W A]."""
    pad_condition: int = 1
    """Condition tokens are filled up to a multiple of this, and masked."""
    norms: Literal["xla", "kernel"] = "xla"
    """Norms of the torso, by XLA or by kernels of a GPU, which have no derivative."""

    def __post_init__(self) -> None:
        remat_policies.check(self.remat)
        for name in ("unroll", "pad_condition"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


PLAIN = Execution()  # the defaults: fp32, everything kept, nothing unrolled


@dataclass(frozen=True)
class FlowConfig:
    """`SparseStructureFlowModel`; the defaults are TRELLIS-image-large (555.5 M parameters)."""

    resolution: int = 16  # edge of the latent grid
    in_channels: int = 8
    out_channels: int = 8
    model_channels: int = 1024
    cond_channels: int = 1024
    num_blocks: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: int = 1
    qk_rms_norm: bool = True  # in self-attention
    qk_rms_norm_cross: bool = False
    share_mod: bool = False  # one modulation linear for all blocks
    pe_mode: str = "ape"

    def __post_init__(self) -> None:
        if self.pe_mode != "ape":
            raise ValueError(
                f"pe_mode {self.pe_mode!r}: only 'ape' runs upstream, which always adds pos_emb"
            )
        if self.resolution % self.patch_size:
            raise ValueError(
                f"resolution {self.resolution} is not a multiple of patch_size {self.patch_size}"
            )
        if self.model_channels % self.num_heads:
            raise ValueError(
                f"model_channels {self.model_channels} is not a multiple of "
                f"num_heads {self.num_heads}"
            )

    @property
    def num_tokens(self) -> int:
        return (self.resolution // self.patch_size) ** 3


@dataclass(frozen=True)
class DecoderConfig:
    """`SparseStructureDecoder`: latents to occupancy logits, doubling the grid between levels."""

    out_channels: int = 1
    latent_channels: int = 8
    num_res_blocks: int = 2  # a level
    channels: tuple[int, ...] = (512, 128, 32)
    num_res_blocks_middle: int = 2
    norm_type: str = "layer"

    def __post_init__(self) -> None:
        _check_norm_type(self.norm_type)


@dataclass(frozen=True)
class EncoderConfig:
    """`SparseStructureEncoder`: occupancy to the mean and log-variance of the latents."""

    in_channels: int = 1
    latent_channels: int = 8
    num_res_blocks: int = 2
    channels: tuple[int, ...] = (32, 128, 512)
    num_res_blocks_middle: int = 2
    norm_type: str = "layer"

    def __post_init__(self) -> None:
        _check_norm_type(self.norm_type)


def _check_norm_type(norm_type: str) -> None:
    if norm_type != "layer":
        raise ValueError(f"norm_type {norm_type!r}: the released models use 'layer' only")


@dataclass(frozen=True)
class DINOv2Config:
    """`DinoVisionTransformer`; the defaults are those of the hub models with registers."""

    width: int
    num_blocks: int
    num_heads: int
    mlp_ratio: float = 4.0
    patch_size: int = 14
    image_size: int = 518  # the stored positional embedding has (518 / 14)^2 = 37^2 patches
    num_registers: int = 4
    ffn: str = "mlp"  # or "swiglu"
    # How the positional embedding is resampled for another grid of patches. The hub models without
    # registers differ: False and 0.1.
    interpolate_antialias: bool = True
    interpolate_offset: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.ffn not in ("mlp", "swiglu"):
            raise ValueError(f"ffn {self.ffn!r}: expected 'mlp' or 'swiglu'")
        if self.interpolate_antialias and self.interpolate_offset:
            raise ValueError("interpolate_offset needs interpolate_antialias=False")

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward layer; SwiGLU keeps two thirds, in multiples of 8."""
        hidden = int(self.width * self.mlp_ratio)
        return hidden if self.ffn == "mlp" else (int(hidden * 2 / 3) + 7) // 8 * 8

    @property
    def grid(self) -> int:
        """Edge of the stored positional embedding, in patches."""
        return self.image_size // self.patch_size


# The toybox must be cheap on a CPU: 64 tokens (patch 2 on 8^3 latents), and a decoder without
# residual blocks between its upsamplings, since a convolution at 32^3 costs more than all at 8^3.
FLOW_SIZES = {
    "TRELLIS-image-large": FlowConfig(),
    # Conditioned on the 77 tokens of CLIP ViT-L/14's text encoder.
    "TRELLIS-text-base": FlowConfig(
        model_channels=768, cond_channels=768, num_blocks=12, num_heads=12
    ),
    "TRELLIS-text-large": FlowConfig(cond_channels=768),
    "TRELLIS-text-xlarge": FlowConfig(
        model_channels=1280, cond_channels=768, num_blocks=28, qk_rms_norm_cross=True
    ),
    "toybox": FlowConfig(
        resolution=8,
        model_channels=128,
        cond_channels=208,  # toybox.COND_CHANNELS
        num_blocks=5,
        num_heads=4,
        patch_size=2,
    ),
}
DECODER_SIZES = {
    "TRELLIS-image-large": DecoderConfig(),
    "toybox": DecoderConfig(channels=(96, 32, 8), num_res_blocks=0, num_res_blocks_middle=2),
}
ENCODER_SIZES = {
    "TRELLIS-image-large": EncoderConfig(),
    "toybox": EncoderConfig(channels=(16, 48, 96), num_res_blocks=1, num_res_blocks_middle=1),
}


def _sizes() -> dict[str, DINOv2Config]:
    plain = {"num_registers": 0, "interpolate_antialias": False, "interpolate_offset": 0.1}
    sizes = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24)}
    return {
        f"dinov2_vit{letter}14{suffix}": DINOv2Config(
            *size, ffn="swiglu" if letter == "g" else "mlp", **options
        )
        for suffix, options in (("_reg", {}), ("", plain))
        for letter, size in sizes.items()
    }


DINOV2_SIZES = _sizes()  # by the names of the torch hub
