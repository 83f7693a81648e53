"""RRDBNet, the network of ESRGAN and Real-ESRGAN upscalers (Wang et al. 2018, arXiv 1809.00219, fig. 4).

Attribute names are the keys of Real-ESRGAN's files.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseBlock(nn.Module):
    """Five densely connected convolutions; the output times 0.2 is added to the input."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for k in range(5):
            made = features if k == 4 else growth
            self.add_module(f"conv{k + 1}", nn.Conv2d(features + k * growth, made, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for k in range(1, 5):
            maps.append(_leaky(self.get_submodule(f"conv{k}")(torch.cat(maps, 1))))
        return x + 0.2 * self.get_submodule("conv5")(torch.cat(maps, 1))


class ResidualDenseBlocks(nn.Module):
    """Three dense blocks; the output times 0.2 is added to the input."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """RGB [B, 3, H, W] in [0, 1] to RGB [B, 3, s*H, s*W]. unshuffle: 4 / s, factor of the first pixel unshuffle."""

    def __init__(self, features: int, growth: int, blocks: int, unshuffle: int = 1) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.conv_first = nn.Conv2d(3 * unshuffle**2, features, 3, padding=1)
        self.body = nn.Sequential(*(ResidualDenseBlocks(features, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            nn.Conv2d(features, features, 3, padding=1) for _ in range(4)
        )
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    @property
    def scale(self) -> int:
        return 4 // self.unshuffle

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.unshuffle > 1:
            x = F.pad(x, (0, -width % self.unshuffle, 0, -height % self.unshuffle), mode="replicate")
            x = F.pixel_unshuffle(x, self.unshuffle)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for conv in (self.conv_up1, self.conv_up2):
            x = _leaky(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        x = self.conv_last(_leaky(self.conv_hr(x)))
        return x[..., : self.scale * height, : self.scale * width]


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)
