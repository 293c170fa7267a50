"""Sizes of the models: what a TRELLIS model `.json` holds, and the embedded toybox beside it."""

from dataclasses import dataclass


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


# The toybox must be cheap on a CPU: 64 tokens (patch 2 on 8^3 latents), and a decoder without
# residual blocks between its upsamplings, since a convolution at 32^3 costs more than all at 8^3.
FLOW_SIZES = {
    "TRELLIS-image-large": FlowConfig(),
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
