"""Attention, and the transformer blocks of the U-Net."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.models.conditioning import Conditioning
from latentdiff.models.layers import add


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, eq. 1) of `x` to the tokens of the conditioning, or self-attention.

    residual, x: [B, N, query_dim]; conditioning.hidden: [B, S, context_dim]. Returns residual + attention,
    [B, N, query_dim]. context_dim: None for self-attention.
    """

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.is_cross = context_dim is not None
        context_dim = context_dim or query_dim
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim)])

    def forward(self, residual: Tensor, x: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        return add(residual, self.to_out[0], self.attend(x, conditioning))

    def attend(self, x: Tensor, conditioning: Conditioning | None) -> Tensor:
        """The output of the heads, concatenated: [B, N, heads * head_dim]."""
        context = x if conditioning is None else conditioning.hidden
        return attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v for each head.

    q: [B, N, heads * head_dim]; k, v: [B, S, heads * head_dim]. Returns [B, N, heads * head_dim].
    """
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class GEGLU(nn.Module):
    """Linear layer whose first half is multiplied by the GELU of its second half (Shazeer 2020)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.proj(x))

    def gate(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back. residual, x: [B, N, dim]. Returns their sum, [B, N, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, residual: Tensor, x: Tensor) -> Tensor:
        return add(residual, self.net[2], self.net[0](x))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text and feed-forward, each on a LayerNorm and with a residual."""

    def __init__(self, dim: int, heads: int, cross_attention_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, None, heads, dim // heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, cross_attention_dim, heads, dim // heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        x = self.attn1(x, self.norm1(x))
        x = self.attn2(x, self.norm2(x), conditioning)
        return self.ff(x, self.norm3(x))  # [B, N, dim]


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of a feature map (Rombach et al. 2022, sec. 3.3).

    x: [B, C, H, W]; conditioning.hidden: [B, S, cross_attention_dim]. Returns [B, C, H, W].
    """

    def __init__(
        self, channels: int, heads: int, depth: int, cross_attention_dim: int, groups: int, linear_projection: bool
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        blocks = [BasicTransformerBlock(channels, heads, cross_attention_dim) for _ in range(depth)]
        self.proj_in = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        size, h = x.shape[-2:], self.norm(x)
        # Old checkpoints have 1x1 convolutions for these projections, new ones linear layers.
        h = self.proj_in(_pixels(h)) if self.linear_projection else _pixels(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, conditioning)
        if self.linear_projection:
            return _map(add(_pixels(x), self.proj_out, h), size)
        return add(x, self.proj_out, _map(h, size))


def _pixels(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # [B, C, H, W] -> [B, H*W, C]


def _map(x: Tensor, size: torch.Size) -> Tensor:
    return x.transpose(1, 2).unflatten(2, size)  # [B, H*W, C] -> [B, C, H, W]


class SpatialSelfAttention(nn.Module):
    """Single-head attention over the pixels of the VAE's smallest feature map. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        out = self.attend(_pixels(self.group_norm(x)))
        return _map(add(_pixels(x), self.to_out[0], out), x.shape[-2:])

    def attend(self, x: Tensor) -> Tensor:
        return attention(self.to_q(x), self.to_k(x), self.to_v(x), heads=1)  # [B, H*W, C]
