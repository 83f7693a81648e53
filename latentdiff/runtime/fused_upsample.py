"""Nearest-neighbour upsampling and the 3x3 convolution after it, computed as four 2x2 convolutions of the small map.

An output pixel depends on 2x2 pixels of the small map only: where two taps of the kernel read the same pixel, their
weights are summed. There is one such kernel for even and odd rows and columns each, and together they need 4/9 of the
operations (Shi et al. 2016, arXiv 1609.07009, on convolutions in the space of the smaller map).
"""

import torch
from torch import Tensor, nn

from latentdiff.models.layers import Upsample2D
from latentdiff.runtime.packed import PackedConv2d, cannot_pack, ops, unpack

LEAST_PIXELS = 64  # of one image: the size of a batch must not decide how its images are rounded
GEOMETRY = ((1, 1), (1, 1), (1, 1), 1)  # padding, stride, dilation, groups


class FusedUpsample(Upsample2D):
    """[B, C, H, W] -> [B, C, 2H, 2W]. Other sizes are computed in two steps.

    The summed weights are packed at the first call and kept in addition to those of the convolution.
    """

    conv: nn.Conv2d
    packed: Tensor | None

    @classmethod
    def can_replace(cls, layer: nn.Module) -> str:
        plain = type(layer.conv) is nn.Conv2d
        return cannot_pack(layer.conv.weight) if plain else "its convolution is not a plain one"  # type: ignore[arg-type, union-attr]

    @classmethod
    def install(cls, layer: nn.Module) -> None:
        layer.__class__ = cls
        layer.packed = None  # type: ignore[assignment]

    def remove(self) -> None:
        del self.packed
        self.__class__ = Upsample2D  # type: ignore[assignment]

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        height, width = x.shape[-2:]
        if size not in (None, (2 * height, 2 * width)) or height * width < LEAST_PIXELS:
            return super().forward(x, size)
        bias = None if self.conv.bias is None else self.conv.bias.repeat(4)
        found = ops._convolution_pointwise(x, self._packed(x), bias, *GEOMETRY, "none", [], "")
        return interleave(found)

    def _packed(self, x: Tensor) -> Tensor:
        if self.packed is None:
            if isinstance(self.conv, PackedConv2d):
                unpack(self.conv)
            self.packed = ops._reorder_convolution_weight(summed_taps(self.conv.weight), *GEOMETRY, list(x.shape))
        return self.packed


def summed_taps(weight: Tensor) -> Tensor:
    """[C_out, C_in, 3, 3] to [4 * C_out, C_in, 2, 2]: even rows and columns, then odd columns, then odd rows."""
    taps = weight.float()
    for axis in (-2, -1):
        first, second, third = taps.split(1, dim=axis)
        even, odd = torch.cat([first, second + third], axis), torch.cat([first + second, third], axis)
        taps = torch.stack([even, odd])
    return taps.transpose(0, 1).flatten(0, 2).to(weight.dtype)


def interleave(phases: Tensor) -> Tensor:
    """[B, 4 * C, H + 1, W + 1], the four 2x2 convolutions with one pixel of padding, to [B, C, 2H, 2W]."""
    phases = phases.permute(0, 2, 3, 1)
    batch, height, width, channels = phases.shape
    out = phases.new_empty(batch, height - 1, 2, width - 1, 2, channels // 4)
    for i, phase in enumerate(phases.chunk(4, dim=-1)):
        row, column = divmod(i, 2)
        out[:, :, row, :, column] = phase[:, row : height - 1 + row, column : width - 1 + column]
    return out.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
