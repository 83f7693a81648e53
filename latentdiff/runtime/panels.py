"""Products in bfloat16 by our own kernels, whose weights lie in panels of 32 columns.

Linear layers have one kernel (linear.cpp). 3x3 convolutions have two: of few pixels (products.cpp) the weights are most
of what is read, 29 MB for 1280 channels at 8x8 pixels against 0.3 MB of the map; of more, the map (convolutions.cpp).
"""

import math

import torch
from torch import Tensor

from latentdiff.runtime.native import call, has_amx

COLUMNS, DEPTH, TILE = 32, 32, 16
FEW_PIXELS = 128  # up to here the kernel for few pixels was the fastest on a CPU with AMX


def suits(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the kernels are there and can take weights [columns, depth] or [columns, depth, k, k], k 1 or 3."""
    whole = shape[0] % COLUMNS == 0 and shape[1] % DEPTH == 0
    return dtype == torch.bfloat16 and whole and math.prod(shape[2:]) in (1, 9) and has_amx()


def in_panels(weight: Tensor) -> bool:
    return not weight.is_mkldnn and weight.dim() in (6, 7)


def in_gated_panels(weight: Tensor) -> bool:
    return not weight.is_mkldnn and weight.dim() == 6


def to_panels(weight: Tensor) -> Tensor:
    """[columns, depth, ...] as [columns / 32, depth / 32, taps, 2, 16 pairs of depths, 16 columns, 2]."""
    columns, depth = weight.shape[:2]
    parts = weight.reshape(columns // COLUMNS, 2, TILE, depth // DEPTH, TILE, 2, -1)
    return parts.permute(0, 3, 6, 1, 4, 2, 5).contiguous()


def to_gated_panels(weight: Tensor) -> Tensor:
    """[2 * width, depth], values before gates, as [width / 16, depth / 32, 2, 16 pairs of depths, 16 columns, 2]."""
    columns, depth = weight.shape
    parts = weight.reshape(2, columns // COLUMNS, TILE, depth // DEPTH, TILE, 2)
    return parts.permute(1, 3, 0, 4, 2, 5).contiguous()


def from_panels(panels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`to_panels` or `to_gated_panels` undone."""
    order = (2, 0, 4, 1, 3, 5) if in_gated_panels(panels) else (0, 3, 5, 1, 4, 6, 2)
    return panels.permute(order).reshape(shape)


def linear(x: Tensor, panels: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [..., depth] times the weights, plus bias [columns] and residual [..., columns]; bfloat16.

    Raises ValueError for a depth, a dtype or a residual that does not fit.
    """
    x, columns = x.contiguous(), len(panels) * COLUMNS
    out = x.new_empty(*x.shape[:-1], columns)
    _check(x.shape[-1], panels, out, residual)
    residual = None if residual is None else residual.contiguous()
    call("linear_bf16", x.numel() // x.shape[-1], x.shape[-1], columns, x, panels, bias, residual, out)
    return out


def gated_linear(x: Tensor, panels: Tensor, bias: Tensor | None) -> Tensor:
    """value * gelu(gate) of the two halves that `linear` gives: [..., columns / 2]; the weights in gated panels.

    Raises ValueError as `linear` does.
    """
    x, columns = x.contiguous(), len(panels) * COLUMNS
    out = x.new_empty(*x.shape[:-1], columns // 2)
    _check(x.shape[-1], panels, out, None)
    call("gated_linear_bf16", x.numel() // x.shape[-1], x.shape[-1], columns, x, panels, bias, out)
    return out


def convolution(x: Tensor, panels: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [B, depth, H, W] under kernels of 1x1, or of 3x3 with a pixel of zeros around x; [B, columns, H, W].

    Raises ValueError as `linear` does.
    """
    batch, depth, height, width = x.shape
    x = x.permute(0, 2, 3, 1).contiguous()
    out = x.new_empty(batch, height, width, len(panels) * COLUMNS)
    residual = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
    _check(depth, panels, out, residual)
    sizes = (batch, height, width) if panels.shape[2] == 9 else (batch * height * width,)
    call(_kernel(panels.shape[2], height * width, batch), *sizes, depth, out.shape[-1], x, panels, bias, residual, out)
    return out.permute(0, 3, 1, 2)


def _kernel(taps: int, pixels: int, images: int) -> str:
    if taps == 1:
        return "linear_bf16"
    few = pixels >= TILE and images * pixels <= FEW_PIXELS
    return "convolution_bf16" if few else "large_convolution_bf16"


def _check(depth: int, panels: Tensor, out: Tensor, residual: Tensor | None) -> None:
    """The kernel reads memory, and would read whatever lies there."""
    if depth != panels.shape[1] * DEPTH or out.dtype != panels.dtype:
        wanted = f"{panels.dtype} of depth {panels.shape[1] * DEPTH}"
        raise ValueError(f"{out.dtype} of depth {depth} does not fit weights in {wanted}")
    if residual is not None and (residual.shape != out.shape or residual.dtype != out.dtype):
        raise ValueError(
            f"a residual {list(residual.shape)}, {residual.dtype}, does not fit {list(out.shape)}, {out.dtype}"
        )
