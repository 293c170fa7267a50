"""SparseStructureEncoder and SparseStructureDecoder in torch, as a reference for parity.

Written from the published description of TRELLIS's structure VAE; state-dict names and shapes are
those of the released checkpoints. Shapes: B batch, C channels, R voxels a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-5


class ChannelLayerNorm32(nn.LayerNorm):
    """Layer norm over the channels of (B,C,R,R,R), in fp32."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1).float()).to(x.dtype).movedim(-1, 1)


class ResBlock3d(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = ChannelLayerNorm32(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = ChannelLayerNorm32(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Downsample3d(nn.Module):
    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample3d(nn.Module):
    """A convolution to 8 C channels, then each group of 8 becomes a 2x2x2 cell."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels * 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(self.conv(x))


def pixel_shuffle(x: Tensor) -> Tensor:
    """(B,8C,R,R,R) -> (B,C,2R,2R,2R); channel c*8 + 4 dx + 2 dy + dz goes to offset (dx,dy,dz)."""
    x = x.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[4], 2 * x.shape[6])


def levels(channels: Sequence[int], res_blocks: int, resample) -> nn.ModuleList:
    """Residual blocks at each width, with ``resample`` between neighbouring widths."""
    blocks = nn.ModuleList()
    for index, width in enumerate(channels):
        blocks.extend(ResBlock3d(width) for _ in range(res_blocks))
        if index + 1 < len(channels):
            blocks.append(resample(width, channels[index + 1]))
    return blocks


class StructureVAE(nn.Module):
    """What encoder and decoder share: the release keeps all but the outer layers in fp16."""

    blocks: nn.ModuleList
    middle_block: nn.Sequential
    torso = torch.float32

    def cast_torso(self, dtype: torch.dtype):
        self.torso = dtype
        for part in (self.blocks, self.middle_block):
            for layer in part.modules():
                if isinstance(layer, nn.Conv3d):
                    layer.to(dtype)
        return self


class SparseStructureDecoder(StructureVAE):
    """Latent (B,8,16,16,16) -> occupancy logits (B,1,64,64,64) at the released size."""

    def __init__(
        self,
        out_channels: int = 1,
        latent_channels: int = 8,
        num_res_blocks: int = 2,
        channels: Sequence[int] = (512, 128, 32),
        num_res_blocks_middle: int = 2,
    ):
        super().__init__()
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(
            *(ResBlock3d(channels[0]) for _ in range(num_res_blocks_middle))
        )
        self.blocks = levels(channels, num_res_blocks, Upsample3d)
        self.out_layer = nn.Sequential(
            ChannelLayerNorm32(channels[-1]),
            nn.SiLU(),
            nn.Conv3d(channels[-1], out_channels, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle_block(self.input_layer(z).to(self.torso))
        for block in self.blocks:
            h = block(h)
        return self.out_layer(h.to(z.dtype))


class SparseStructureEncoder(StructureVAE):
    """Occupancy (B,1,64,64,64) -> mean and log variance (B,8,16,16,16) at the released size."""

    def __init__(
        self,
        in_channels: int = 1,
        latent_channels: int = 8,
        num_res_blocks: int = 2,
        channels: Sequence[int] = (32, 128, 512),
        num_res_blocks_middle: int = 2,
    ):
        super().__init__()
        self.input_layer = nn.Conv3d(in_channels, channels[0], 3, padding=1)
        self.blocks = levels(channels, num_res_blocks, Downsample3d)
        self.middle_block = nn.Sequential(
            *(ResBlock3d(channels[-1]) for _ in range(num_res_blocks_middle))
        )
        self.out_layer = nn.Sequential(
            ChannelLayerNorm32(channels[-1]),
            nn.SiLU(),
            nn.Conv3d(channels[-1], latent_channels * 2, 3, padding=1),
        )

    def forward(self, occupancy: Tensor) -> tuple[Tensor, Tensor]:
        h = self.input_layer(occupancy).to(self.torso)
        for block in self.blocks:
            h = block(h)
        h = self.out_layer(self.middle_block(h).to(occupancy.dtype))
        mean, logvar = h.chunk(2, dim=1)
        return mean, logvar
