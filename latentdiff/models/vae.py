"""The autoencoder between pixels and latents (Kingma & Welling 2014; Rombach et al. 2022, sec. 3.1).

Attribute names are the keys of diffusers' `AutoencoderKL`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.config.model import IdentityVAEConfig, VAEConfig
from latentdiff.models.attention import SpatialSelfAttention
from latentdiff.models.layers import Downsample2D, GroupNormSiLU, ResnetBlock2D, Upsample2D


@dataclass(frozen=True)
class DiagonalGaussian:
    """The encoder's output: independent normal distributions; `mean` and `logvar` are [B, latent_channels, h, w]."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one sample; the noise is generated on the generator's device."""
        device = generator.device if generator else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, summed over each latent (Kingma & Welling 2014, app. B): [B]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class Level(nn.Module):
    """Residual blocks of one width and an optional resampling layer; a container for `run`."""

    def __init__(self, config: VAEConfig, layers: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels if i == 0 else out_channels, out_channels, None, config.norm_num_groups)
            for i in range(layers)
        )
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None


def run(levels: Iterable[Any], x: Tensor) -> Tensor:
    """Run the layers of each level, with one call per layer so that inputs are freed early."""
    for level in levels:
        for layer in (*level.resnets, *(level.downsamplers or level.upsamplers or [])):
            x = layer(x)
    return x


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the smallest size."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[-1], config.norm_num_groups
        self.resnets = nn.ModuleList(ResnetBlock2D(channels, channels, None, groups) for _ in range(2))
        attention = config.mid_block_add_attention
        self.attentions = nn.ModuleList([SpatialSelfAttention(channels, groups)]) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] to mean and log-variance [B, 2*latent_channels, H/f, W/f]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(config, config.layers_per_block, widths[max(i - 1, 0)], width)
            if i < len(widths) - 1:
                level.downsamplers = nn.ModuleList([Downsample2D(width, asymmetric=True)])
            self.down_blocks.append(level)
        self.mid_block = MidBlock(config)
        self.conv_norm_out = GroupNormSiLU(config.norm_num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = run(self.down_blocks, self.conv_in(x))
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class Decoder(nn.Module):
    """Latents [B, latent_channels, h, w] to pixels [B, 3, f*h, f*w]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(config, config.layers_per_block + 1, widths[max(i - 1, 0)], width)
            if i < len(widths) - 1:
                level.upsamplers = nn.ModuleList([Upsample2D(width)])
            self.up_blocks.append(level)
        self.conv_norm_out = GroupNormSiLU(config.norm_num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = run(self.up_blocks, self.mid_block(self.conv_in(z)))
        return self.conv_out(self.conv_norm_out(x))


class AutoencoderKL(nn.Module):
    """A convolutional VAE. Latents for diffusion are `config.scaling_factor * z`; the caller applies the factor."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        z = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.use_post_quant_conv else None

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Pixels [B, 3, H, W] in [-1, 1] to the distribution of z [B, latent_channels, H/f, W/f]."""
        h = self.encoder(x)
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        mean, logvar = h.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30, 20))

    def decode(self, z: Tensor) -> Tensor:
        """z [B, latent_channels, h, w] to pixels [B, 3, f*h, f*w], in [-1, 1], apart from the decoder's overshoot."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


class IdentityVAE(nn.Module):
    """The identity for diffusion in pixel space; with one channel, the mean of red, green and blue.

    It consists of two fixed 1x1 convolutions, so that it can be moved, saved and loaded like a VAE.
    """

    def __init__(self, config: IdentityVAEConfig) -> None:
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = nn.Conv2d(3, z, 1, bias=False)
        self.decoder = nn.Conv2d(z, 3, 1, bias=False)
        there, back = (torch.eye(3), torch.eye(3)) if z == 3 else (torch.full((1, 3), 1 / 3), torch.ones(3, 1))
        self.encoder.weight = nn.Parameter(there[:, :, None, None], requires_grad=False)
        self.decoder.weight = nn.Parameter(back[:, :, None, None], requires_grad=False)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Pixels [B, 3, H, W] in [-1, 1] to z [B, latent_channels, H, W], with zero variance."""
        mean = self.encoder(x)
        return DiagonalGaussian(mean, torch.full_like(mean, -math.inf))

    def decode(self, z: Tensor) -> Tensor:
        """z [B, latent_channels, H, W] to pixels [B, 3, H, W]."""
        return self.decoder(z)


VAE = AutoencoderKL | IdentityVAE
