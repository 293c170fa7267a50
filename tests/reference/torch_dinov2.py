"""DINOv2 in torch, as a reference for parity and speed.

Written from the published description; the state-dict names and shapes are those of the torch hub.
Shapes: B batch, N patches, L tokens, H heads, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with one fused input linear."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.proj(h.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """Gated feed-forward with both input linears in one, two thirds of the width of an MLP."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned gain a channel."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with scaled residuals."""

    def __init__(self, width: int, heads: int, hidden: int, ffn: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = {"mlp": Mlp, "swiglu": SwiGLU}[ffn](width, hidden)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """(B,3,H,W) -> (B,N,D)."""

    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class DinoVisionTransformer(nn.Module):
    """Tokens [CLS, registers, patches]; arguments are the fields of `DINOv2Config`."""

    def __init__(
        self,
        width: int,
        num_blocks: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        patch_size: int = 14,
        image_size: int = 518,
        num_registers: int = 4,
        ffn: str = "mlp",
        interpolate_antialias: bool = True,
        interpolate_offset: float = 0.0,
    ):
        super().__init__()
        self.patch_size, self.grid = patch_size, image_size // patch_size
        self.antialias, self.offset = interpolate_antialias, interpolate_offset
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, width))
        else:
            self.register_tokens = None
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = PatchEmbed(patch_size, width)
        hidden = int(width * mlp_ratio)
        self.blocks = nn.ModuleList(Block(width, num_heads, hidden, ffn) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def positions(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == (self.grid, self.grid):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        target: dict[str, Any] = {"size": (rows, columns)}
        if self.offset:
            target = {"scale_factor": [(n + self.offset) / self.grid for n in (rows, columns)]}
        grid = F.interpolate(grid, mode="bicubic", antialias=self.antialias, **target)
        assert grid.shape[-2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        rows, columns = (edge // self.patch_size for edge in images.shape[-2:])
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = tokens + self.positions(rows, columns)
        if self.register_tokens is None:
            return tokens
        registers = self.register_tokens.expand(len(images), -1, -1)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,L,D) before the final norm."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x
