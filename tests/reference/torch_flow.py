"""SparseStructureFlowModel in torch, as a reference for parity and speed.

Written from the published description of TRELLIS stage 1; the state-dict names and shapes are those
of the released checkpoint. Shapes: B batch, L voxel tokens, S condition tokens, H heads, E head
width, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK_NORM_EPS = 1e-6
OUT_NORM_EPS = 1e-5
FREQUENCY_CHANNELS = 256


class LayerNorm32(nn.LayerNorm):
    """Layer norm computed in fp32, returned in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


class MultiHeadRMSNorm(nn.Module):
    """Unit L2 norm per head, times a learned gain and sqrt(head width)."""

    def __init__(self, head_channels: int, heads: int):
        super().__init__()
        self.scale = math.sqrt(head_channels)
        self.gamma = nn.Parameter(torch.ones(heads, head_channels))

    def forward(self, x: Tensor) -> Tensor:
        unit = F.normalize(x.float(), dim=-1, eps=1e-12)
        return (unit * self.gamma * self.scale).to(x.dtype)


class Attention(nn.Module):
    """Full multi-head attention: self (``to_qkv``) or cross (``to_q`` and ``to_kv``)."""

    def __init__(self, channels: int, heads: int, context: int | None = None, qk_rms_norm=False):
        super().__init__()
        self.heads = heads
        self.is_self = context is None
        if context is None:
            self.to_qkv = nn.Linear(channels, 3 * channels)
        else:
            self.to_q = nn.Linear(channels, channels)
            self.to_kv = nn.Linear(context, 2 * channels)
        self.qk_rms_norm = qk_rms_norm
        if qk_rms_norm:
            self.q_rms_norm = MultiHeadRMSNorm(channels // heads, heads)
            self.k_rms_norm = MultiHeadRMSNorm(channels // heads, heads)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if self.is_self:
            q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        else:
            q = self.to_q(x).unflatten(-1, (self.heads, -1))
            k, v = self.to_kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        if self.qk_rms_norm:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))  # (B,L,H,E) -> (B,H,L,E)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(h.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU in its tanh form, Linear."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class ModulatedBlock(nn.Module):
    """adaLN-modulated self-attention and MLP, unmodulated cross-attention between them."""

    def __init__(
        self,
        channels: int,
        context: int,
        heads: int,
        mlp_ratio: float,
        qk_rms_norm: bool,
        qk_rms_norm_cross: bool,
        share_mod: bool,
    ):
        super().__init__()
        self.share_mod = share_mod
        self.norm1 = LayerNorm32(channels, eps=BLOCK_NORM_EPS, elementwise_affine=False)
        self.norm2 = LayerNorm32(channels, eps=BLOCK_NORM_EPS)
        self.norm3 = LayerNorm32(channels, eps=BLOCK_NORM_EPS, elementwise_affine=False)
        self.self_attn = Attention(channels, heads, qk_rms_norm=qk_rms_norm)
        self.cross_attn = Attention(channels, heads, context, qk_rms_norm=qk_rms_norm_cross)
        self.mlp = FeedForward(channels, int(channels * mlp_ratio))
        if not share_mod:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))

    def forward(self, x: Tensor, mod: Tensor, context: Tensor) -> Tensor:
        mod = mod if self.share_mod else self.adaLN_modulation(mod)
        shift1, scale1, gate1, shift2, scale2, gate2 = mod[:, None].chunk(6, dim=-1)
        x = x + self.self_attn(self.norm1(x) * (1 + scale1) + shift1) * gate1
        x = x + self.cross_attn(self.norm2(x), context)
        return x + self.mlp(self.norm3(x) * (1 + scale2) + shift2) * gate2


class TimestepEmbedder(nn.Module):
    """[cos, sin] features of t (already times 1000), then a two-layer MLP."""

    def __init__(self, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCY_CHANNELS, channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def forward(self, t: Tensor) -> Tensor:
        half = FREQUENCY_CHANNELS // 2
        rate = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angle = t[:, None].float() * torch.exp(-math.log(10000.0) * rate)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


def position_embedding(side: int, channels: int) -> Tensor:
    """Sine and cosine of each axis of a side^3 grid, x-major, zero-padded to ``channels``."""
    axis = torch.arange(side)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    count = channels // 3 // 2
    rate = 1.0 / 10000.0 ** (torch.arange(count, dtype=torch.float32) / count)
    angle = grid.float()[..., None] * rate  # (L, 3, count)
    features = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)
    return F.pad(features, (0, channels - features.shape[1]))


class SparseStructureFlowModel(nn.Module):
    """Velocity of the structure latent; arguments carry the names of TRELLIS's JSON files."""

    def __init__(
        self,
        resolution: int = 16,
        in_channels: int = 8,
        model_channels: int = 1024,
        cond_channels: int = 1024,
        out_channels: int = 8,
        num_blocks: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        patch_size: int = 1,
        share_mod: bool = False,
        qk_rms_norm: bool = True,
        qk_rms_norm_cross: bool = False,
    ):
        super().__init__()
        self.side, self.patch = resolution // patch_size, patch_size
        self.share_mod, self.torso = share_mod, torch.float32
        self.t_embedder = TimestepEmbedder(model_channels)
        if share_mod:
            self.adaLN_modulation = nn.Sequential(
                nn.SiLU(), nn.Linear(model_channels, 6 * model_channels)
            )
        self.register_buffer("pos_emb", position_embedding(self.side, model_channels))
        self.input_layer = nn.Linear(in_channels * patch_size**3, model_channels)
        self.blocks = nn.ModuleList(
            ModulatedBlock(
                model_channels,
                cond_channels,
                num_heads,
                mlp_ratio,
                qk_rms_norm,
                qk_rms_norm_cross,
                share_mod,
            )
            for _ in range(num_blocks)
        )
        self.out_layer = nn.Linear(model_channels, out_channels * patch_size**3)

    def cast_torso(self, dtype: torch.dtype) -> SparseStructureFlowModel:
        """Put the linears of the blocks in ``dtype``; norms and the outer layers stay fp32."""
        self.torso = dtype
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                layer.to(dtype)
        return self

    def patchify(self, x: Tensor) -> Tensor:
        """(B,C,R,R,R) -> (B,L,C*p^3), channel-major inside a token, x-major over tokens."""
        p, n = self.patch, self.side
        x = x.reshape(*x.shape[:2], n, p, n, p, n, p)
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(x.shape[0], n**3, -1)

    def unpatchify(self, h: Tensor) -> Tensor:
        p, n = self.patch, self.side
        h = h.reshape(h.shape[0], n, n, n, -1, p, p, p).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return h.reshape(*h.shape[:2], n * p, n * p, n * p)

    def embed(self, x: Tensor) -> Tensor:
        return self.input_layer(self.patchify(x)) + self.pos_emb

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """x (B,C,R,R,R), t (B,) times 1000, cond (B,S,Dc) -> velocity (B,C,R,R,R)."""
        modulation = self.t_embedder(t)
        if self.share_mod:
            modulation = self.adaLN_modulation(modulation)
        h, modulation, cond = (a.to(self.torso) for a in (self.embed(x), modulation, cond))
        for block in self.blocks:
            h = block(h, modulation, cond)
        h = F.layer_norm(h.to(x.dtype), h.shape[-1:], eps=OUT_NORM_EPS)
        return self.unpatchify(self.out_layer(h))
