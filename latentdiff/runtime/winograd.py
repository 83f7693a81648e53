"""3x3 convolutions in float32 by Winograd's algorithm F(4x4, 3x3) (Lavin & Gray 2016, arXiv 1509.09308).

It needs a quarter of the products of a direct convolution and rounds less exactly: in relative L2 norm the error of
one convolution is 1.6e-6 instead of 0.3e-6. The transformed weights take four times the memory of the weights and are
held in addition to them, so layers with many weights are left out.
"""

import torch
from torch import Tensor, nn

from latentdiff.runtime.memory import keep_freed_memory, map_large_blocks
from latentdiff.runtime.native import call, provides
from latentdiff.runtime.panels import panel_width, plain_weight

PRODUCTS = 36
LEAST_PIXELS = 256  # of one image: the size of a batch must not decide how its images are rounded
MOST_WEIGHTS = 640 * 640  # of one tap
GEOMETRY = ((3, 3), (1, 1), (1, 1), (1, 1), 1)
CHANNELS = 32  # input and output channels must be multiples


def suits_winograd(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether the kernel computes this layer faster than a direct convolution whose weights were packed before."""
    return x.shape[2] * x.shape[3] >= LEAST_PIXELS and has_kernel(layer, x.dtype)


def has_kernel(layer: nn.Conv2d, dtype: torch.dtype) -> bool:
    """Whether the kernel can compute the layer, a 3x3 convolution with one pixel of padding, from inputs of `dtype`."""
    columns, depth = layer.out_channels, layer.in_channels
    geometry = layer.kernel_size, layer.padding, layer.stride, layer.dilation, layer.groups
    return (
        dtype == layer.weight.dtype == torch.float32
        and geometry == GEOMETRY
        and columns * depth <= MOST_WEIGHTS
        and columns % CHANNELS == depth % CHANNELS == 0
        and provides("winograd_fp32")
    )


def transformed_weight(layer: nn.Conv2d) -> Tensor:
    """The layer's weight for `winograd`, which is computed at the first call and kept."""
    held: Tensor | None = layer.transformed  # type: ignore[assignment]
    (map_large_blocks if held is None else keep_freed_memory)()
    if held is None:
        held = layer.transformed = transform(plain_weight(layer.weight, (layer.out_channels, layer.in_channels, 3, 3)))
    return held


def transform(weight: Tensor) -> Tensor:
    """[columns, depth, 3, 3] to [columns / width, 36, depth, width], where the width is that of the kernel's panels."""
    columns, depth = weight.shape[:2]
    width = panel_width()
    out = weight.new_empty(columns // width, PRODUCTS, depth, width)
    call("winograd_weights_fp32", columns, depth, weight.contiguous(), out)
    return out


def winograd(x: Tensor, transformed: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [B, depth, H, W] convolved with one pixel of zero padding, plus bias [columns] and residual [B, columns, H, W].

    Raises ValueError if the shapes do not fit.
    """
    batch, depth, height, width = x.shape
    columns = len(transformed) * transformed.shape[-1]
    out = x.new_empty(batch, height, width, columns)
    if transformed.shape[2] != depth or (residual is not None and residual.shape != (batch, columns, height, width)):
        raise ValueError(f"weights of depth {transformed.shape[2]} and {columns} columns do not fit x {list(x.shape)}")
    pixels = x.permute(0, 2, 3, 1).contiguous()
    residual = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
    call("winograd_fp32", batch, height, width, depth, columns, pixels, transformed, bias, residual, out)
    return out.permute(0, 3, 1, 2)
