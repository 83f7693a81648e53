"""Caching deep U-Net features between steps: DeepCache (Ma et al. 2024, arXiv 2312.00858, sec. 3.2)."""

from collections.abc import Hashable

import torch
from torch import Tensor

from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel

EVERY = 2


class DeepCacheUNet:
    """A U-Net for consecutive steps of one sampling run, between which deep features change little.

    Every `every`-th call computes all levels; the others compute only the outermost, around the deep features of the
    last full call. All levels are also computed if the conditioning changes: if guidance begins or ends, or the prompt
    changes.
    """

    def __init__(self, unet: UNet2DConditionModel, every: int) -> None:
        self.unet, self.every = unet, every
        self.deep: Tensor | None = None
        self.keys: tuple[Hashable, ...] = ()  # of the conditioning with which `deep` was computed
        self.age = 0

    def __call__(self, sample: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """`UNet2DConditionModel.forward`, whose outermost level is computed at every call."""
        unet = self.unet
        temb = unet.embed_time(timesteps, conditioning)
        x = unet.conv_in(sample)
        inner, skips = unet.run_block(unet.down_blocks[0], x, temb, conditioning)
        if self.deep is None or self.keys != conditioning.keys or self.age == self.every:
            self.deep, self.age = self._deep_levels(inner, temb, conditioning, x.shape[-2:]), 0
            self.keys = conditioning.keys
        self.age += 1
        own = [x, *skips][unet.config.layers_per_block :: -1]
        x = unet.run_block(unet.up_blocks[-1], self.deep, own, temb, conditioning, None)
        return unet.conv_out(unet.conv_norm_out(x))

    def _deep_levels(self, x: Tensor, temb: Tensor, conditioning: Conditioning, size: torch.Size) -> Tensor:
        """All levels except the outermost: from its downsampled map to a map upsampled to `size` (H, W)."""
        unet, skips = self.unet, [x]
        for down in unet.down_blocks[1:]:
            x, new = unet.run_block(down, x, temb, conditioning)
            skips += new
        if unet.mid_block is not None:
            x = unet.run_block(unet.mid_block, x, temb, conditioning)
        for up in unet.up_blocks[:-1]:
            own = [skips.pop() for _ in range(unet.config.layers_per_block + 1)]
            x = unet.run_block(up, x, own, temb, conditioning, skips[-1].shape[-2:] if skips else size)
        return x
