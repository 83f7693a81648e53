"""Residual blocks, resampling and the timestep embedding, shared by the U-Net and the VAE."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(timesteps: Tensor, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Tensor:
    """Sinusoids of the timestep at `dim / 2` geometric frequencies (Vaswani et al. 2017, sec. 3.5).

    timesteps: [B], integer or fractional. Returns float32 [B, dim].
    """
    half = dim // 2
    exponent = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(exponent / (half - freq_shift))[None]  # [B, half]
    parts = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers from sinusoids to the time embedding of the residual blocks."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))  # [B, dim]


def add(residual: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
    """residual + layer(x); a layer with a method `add_to` computes both in one pass."""
    add_to: Callable[[Tensor, Tensor], Tensor] | None = getattr(layer, "add_to", None)
    return residual + layer(x) if add_to is None else add_to(residual, x)


class GroupNormSiLU(nn.GroupNorm):
    """GroupNorm (Wu & He 2018) followed by SiLU, in one module so that one kernel can compute both.

    [B, C, H, W] -> [B, C, H, W]. shift: [B, C], added to `x` before the norm. spare: `x` is not used afterwards, so a
    kernel may write its output there.
    """

    def forward(self, x: Tensor, shift: Tensor | None = None, spare: bool = False) -> Tensor:
        return F.silu(super().forward(x if shift is None else x + shift[:, :, None, None]))


class ResnetBlock2D(nn.Module):
    """Residual block: twice norm, SiLU and convolution; the time embedding is added between the two.

    x: [B, in_channels, H, W], temb: [B, temb_channels] after a SiLU, or None. Returns [B, out_channels, H, W].
    """

    def __init__(
        self, in_channels: int, out_channels: int, temb_channels: int | None, groups: int = 32, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels) if temb_channels else None
        self.norm2 = GroupNormSiLU(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(self.norm1(x))
        shift = None if self.time_emb_proj is None or temb is None else self.time_emb_proj(temb)
        return add(
            x if self.conv_shortcut is None else self.conv_shortcut(x), self.conv2, self.norm2(h, shift, spare=True)
        )


class Downsample2D(nn.Module):
    """Halve height and width with a strided convolution; the VAE's encoder pads only right and bottom."""

    def __init__(self, channels: int, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)  # [B, C, H/2, W/2]


class Upsample2D(nn.Module):
    """Nearest-neighbour upsampling, then a convolution. size: (H, W) of the output; twice the input's if None."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        height, width = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=(height, width), mode="nearest"))
