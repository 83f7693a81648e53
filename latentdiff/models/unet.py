"""The U-Net that predicts noise, velocity or x0 in latent space (Rombach et al. 2022, sec. 3.3).

Attribute names are the keys of diffusers' checkpoints, so `load_state_dict(strict=True)` needs no map.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from latentdiff.config.model import UNetConfig
from latentdiff.models.attention import Transformer2DModel
from latentdiff.models.conditioning import Conditioning, DenoisingNetwork
from latentdiff.models.layers import (
    Downsample2D,
    GroupNormSiLU,
    ResnetBlock2D,
    TimestepEmbedding,
    Upsample2D,
    timestep_embedding,
)


class DownBlock(nn.Module):
    """Residual blocks, each followed by cross-attention if the level has it, then a downsampling."""

    def __init__(self, config: UNetConfig, level: int, in_channels: int, temb_channels: int) -> None:
        super().__init__()
        out_channels = config.block_out_channels[level]
        resnets = [
            _resnet(config, in_channels if i == 0 else out_channels, out_channels, temb_channels)
            for i in range(config.layers_per_block)
        ]
        self.resnets = nn.ModuleList(resnets)
        self.attentions = (
            _attentions(config, level, config.down_depths(level)) if config.down_attention(level) else None
        )
        last = level == len(config.block_out_channels) - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample2D(out_channels)])

    def forward(self, x: Tensor, temb: Tensor, conditioning: Conditioning) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attentions is not None:
                x = self.attentions[i](x, conditioning)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the smallest size; pruned models have only the first, or none."""

    def __init__(self, config: UNetConfig, temb_channels: int) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        attends = config.mid_block_type == "UNetMidBlock2DCrossAttn"
        resnets = [_resnet(config, channels, channels, temb_channels) for _ in range(1 + attends)]
        self.resnets = nn.ModuleList(resnets)
        self.attentions = _attentions(config, -1, (config.mid_depth,)) if attends else None

    def forward(self, x: Tensor, temb: Tensor, conditioning: Conditioning) -> Tensor:
        x = self.resnets[0](x, temb)
        return x if self.attentions is None else self.resnets[1](self.attentions[0](x, conditioning), temb)


class UpBlock(nn.Module):
    """Residual blocks that read the skips of the down blocks in reverse order, then an upsampling."""

    def __init__(
        self, config: UNetConfig, level: int, in_channels: int, skip_channels: list[int], temb_channels: int
    ) -> None:
        super().__init__()
        out_channels = config.block_out_channels[level]
        resnets = [
            _resnet(config, (in_channels if i == 0 else out_channels) + skip, out_channels, temb_channels)
            for i, skip in enumerate(skip_channels)
        ]
        self.resnets = nn.ModuleList(resnets)
        self.attentions = _attentions(config, level, config.up_depths(level)) if config.up_attention(level) else None
        self.upsamplers = None if level == 0 else nn.ModuleList([Upsample2D(out_channels)])

    def forward(
        self, x: Tensor, skips: list[Tensor], temb: Tensor, conditioning: Conditioning, size: torch.Size | None
    ) -> Tensor:
        """skips: of this level, in the order of use. size: (H, W) of the output; None on the last level."""
        for i, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            x = resnet(torch.cat([x, skip], dim=1), temb)
            if self.attentions is not None:
                x = self.attentions[i](x, conditioning)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, size)
        return x


class UNet2DConditionModel(DenoisingNetwork):
    """A denoiser of latents, conditioned on the timestep and, by cross-attention, on text.

    sample: [B, in_channels, h, w]; timesteps: [B], or [1] for all rows; conditioning: hidden
    [B, S, cross_attention_dim], for SDXL also pooled text and sizes. Returns [B, out_channels, h, w].
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_channels, self.default_size = config.out_channels, config.sample_size
        self.side_multiple = config.downscale
        self.gradient_checkpointing = False
        channels = config.block_out_channels
        temb_channels = 4 * channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], temb_channels)
        self.add_embedding = None
        if config.addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, temb_channels)

        self.down_blocks = nn.ModuleList()
        skip_channels = [channels[0]]
        for level, width in enumerate(channels):
            self.down_blocks.append(DownBlock(config, level, skip_channels[-1], temb_channels))
            pooled = level < len(channels) - 1
            skip_channels += [width] * (config.layers_per_block + pooled)

        self.mid_block = None if config.mid_block_type is None else MidBlock(config, temb_channels)

        self.up_blocks = nn.ModuleList()
        width = channels[-1]
        for level in reversed(range(len(channels))):
            skips = [skip_channels.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(config, level, width, skips, temb_channels))
            width = channels[level]

        self.conv_norm_out = GroupNormSiLU(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        temb = self.embed_time(timesteps, conditioning)  # [B, 4*C0]
        x = self.conv_in(sample)
        skips = [x]
        for down in self.down_blocks:
            x, new = self.run_block(down, x, temb, conditioning)
            skips += new
        if self.mid_block is not None:
            x = self.run_block(self.mid_block, x, temb, conditioning)
        for up in self.up_blocks:
            own = [skips.pop() for _ in range(self.config.layers_per_block + 1)]
            x = self.run_block(up, x, own, temb, conditioning, skips[-1].shape[-2:] if skips else None)
        return self.conv_out(self.conv_norm_out(x))  # [B, out_channels, h, w]

    def run_block(self, block: nn.Module, *arguments: Any) -> Any:
        """Run a block; with gradient checkpointing, its activations are recomputed in the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def embed_time(self, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """SiLU of the timestep and, for SDXL (Podell et al. 2023, sec. 2.2), of pooled text and sizes, [B, 4*C0]."""
        dtype = self.conv_in.weight.dtype
        temb = self.time_embedding(self._sinusoids(timesteps, self.config.block_out_channels[0]).to(dtype))
        if self.add_embedding is None:
            return F.silu(temb)
        pooled, ids = conditioning.pooled, conditioning.time_ids
        if pooled is None or ids is None:
            raise ValueError("this U-Net has addition_embed_type='text_time'; pass pooled and time_ids as well")
        sizes = self._sinusoids(ids.flatten(), self.config.addition_time_embed_dim).reshape(len(pooled), -1)
        added = torch.cat([pooled, sizes.to(pooled.dtype)], dim=-1)
        return F.silu(temb + self.add_embedding(added.to(dtype)))

    def _sinusoids(self, values: Tensor, dim: int) -> Tensor:
        return timestep_embedding(values, dim, self.config.flip_sin_to_cos, self.config.freq_shift)


def _resnet(config: UNetConfig, in_channels: int, out_channels: int, temb_channels: int) -> ResnetBlock2D:
    return ResnetBlock2D(in_channels, out_channels, temb_channels, config.norm_num_groups, config.norm_eps)


def _attentions(config: UNetConfig, level: int, depths: tuple[int, ...]) -> nn.ModuleList:
    channels = config.block_out_channels[level]
    return nn.ModuleList(
        Transformer2DModel(
            channels,
            heads=config.num_attention_heads[level],
            depth=depth,
            cross_attention_dim=config.cross_attention_dim,
            groups=config.norm_num_groups,
            linear_projection=config.use_linear_projection,
        )
        for depth in depths
    )
