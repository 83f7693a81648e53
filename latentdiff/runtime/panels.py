"""The orders of packed weights, above all panels of columns, which our kernels read, and the products with them.

A panel has 2 * lanes columns. In bfloat16 there are 16 lanes, and 16 pairs of depths are adjacent; in float32 the lanes
are those of the processor's vectors. The two halves of a gated panel are values and their gates.
"""

import math
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentdiff.runtime.native import SUFFIX, call, load_kernels, provides

FEW_ROWS = 128  # pixels of all images, up to which the kernel for few pixels is the fastest of ours on a CPU with AMX
FEW_PIXELS = 32  # of an image, up to which a direct convolution is faster than Winograd's algorithm


class Order(Enum):
    """The order in which a weight is stored."""

    PLAIN = "plain"
    ONEDNN = "oneDNN's"
    PANELS = "panels"
    GATED = "gated panels"


def order_of(weight: Tensor) -> Order:
    """The order of a weight, read off the tensor itself: another thread may replace a layer's weight at any time."""
    if weight.is_mkldnn:
        return Order.ONEDNN
    return {6: Order.GATED, 7: Order.PANELS}.get(weight.dim(), Order.PLAIN)


class Layout(NamedTuple):
    """lanes: half of the columns of a panel. A panel has `pairs` * `values` depths at a time, `values` adjacent."""

    lanes: int
    pairs: int
    values: int

    @property
    def columns(self) -> int:
        return 2 * self.lanes

    @property
    def depth(self) -> int:
        return self.pairs * self.values


BFLOAT16 = Layout(lanes=16, pairs=16, values=2)


def layout(dtype: torch.dtype) -> Layout:
    """The layout of weights in bfloat16 or float32."""
    return BFLOAT16 if dtype == torch.bfloat16 else Layout(panel_width() // 2, pairs=1, values=1)


def panel_width() -> int:
    """The columns of a panel of float32 weights."""
    return _panel_width(load_kernels())


@cache
def _panel_width(library: Any) -> int:
    return int(library.panel_width())


def has_linear(kernel: str, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the variant in use has `kernel`, "linear" or "gated_linear", for weights [columns, depth] of `dtype`."""
    return provides(f"{kernel}_{SUFFIX[dtype]}") and _divides(shape, dtype)


def has_convolution(shape: tuple[int, ...], dtype: torch.dtype, images: int, pixels: int) -> bool:
    """Whether it has a kernel for weights [columns, depth, k, k], where k is 1 or 3, and for maps of this size."""
    kernel = convolution_kernel(dtype, math.prod(shape[2:]), images, pixels)
    vectors = not kernel.startswith("winograd") or shape[1] % layout(dtype).lanes == 0  # it transforms these channels
    return images * pixels > 0 and provides(kernel) and _divides(shape, dtype) and vectors


def convolution_kernel(dtype: torch.dtype, taps: int, images: int, pixels: int) -> str:
    """The name of the kernel for a convolution; pixels: of each image."""
    if taps == 1:
        return f"linear_{SUFFIX[dtype]}"
    if provides(f"large_convolution_{SUFFIX[dtype]}"):
        few = images * pixels <= FEW_ROWS and pixels >= BFLOAT16.lanes
        return f"{'' if few else 'large_'}convolution_{SUFFIX[dtype]}"
    few = (BFLOAT16.lanes if dtype == torch.bfloat16 else 1) <= pixels <= FEW_PIXELS
    return f"{'convolution' if few else 'winograd'}_{SUFFIX[dtype]}"


def prefers_winograd(dtype: torch.dtype) -> bool:
    """Whether Winograd's algorithm computes large 3x3 convolutions of `dtype`; with AMX, direct products are faster."""
    return provides(f"winograd_{SUFFIX[dtype]}") and not provides(f"large_convolution_{SUFFIX[dtype]}")


def _divides(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    panel = layout(dtype)
    return shape[0] % panel.columns == 0 and shape[1] % panel.depth == 0


def to_panels(weight: Tensor) -> Tensor:
    """[columns, depth, ...] as [columns / panel.columns, depth / panel.depth, taps, 2, pairs, lanes, values].

    In float32, the taps are before the depth.
    """
    panel, (columns, depth) = layout(weight.dtype), weight.shape[:2]
    parts = weight.reshape(
        columns // panel.columns, 2, panel.lanes, depth // panel.depth, panel.pairs, panel.values, -1
    )
    first, second = (6, 3) if weight.dtype == torch.float32 else (3, 6)
    return parts.permute(0, first, second, 1, 4, 2, 5).contiguous()


def to_gated_panels(weight: Tensor) -> Tensor:
    """[2 * width, depth], values before gates, as [width / lanes, depth / panel.depth, 2, pairs, lanes, values]."""
    panel, (columns, depth) = layout(weight.dtype), weight.shape
    parts = weight.reshape(2, columns // panel.columns, panel.lanes, depth // panel.depth, panel.pairs, panel.values)
    return parts.permute(1, 3, 0, 4, 2, 5).contiguous()


def from_panels(panels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_panels` and `to_gated_panels`."""
    if order_of(panels) is Order.GATED:
        return panels.permute(2, 0, 4, 1, 3, 5).reshape(shape)
    depth, taps = (2, 1) if panels.dtype == torch.float32 else (1, 2)
    return panels.permute(0, 3, 5, depth, 4, 6, taps).reshape(shape)


def plain_weight(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A weight in any order as the plain weight of this shape, to the bit."""
    order = order_of(weight)
    if order is Order.ONEDNN:
        return weight.to_dense().reshape(shape)
    return weight if order is Order.PLAIN else from_panels(weight, shape)


def linear(x: Tensor, panels: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [..., depth] times the weights, plus bias [columns] and residual [..., columns]; bfloat16 or float32.

    Raises ValueError for a depth, a dtype or a residual that does not match.
    """
    x, columns, depth = x.contiguous(), columns_of(panels), x.shape[-1]
    out = x.new_empty(*x.shape[:-1], columns)
    _check(depth, panels, out, residual)
    residual = None if residual is None else residual.contiguous()
    call(f"linear_{SUFFIX[x.dtype]}", x.numel() // depth, depth, columns, x, panels, bias, residual, out)
    return out


def gated_linear(x: Tensor, panels: Tensor, bias: Tensor | None) -> Tensor:
    """value * gelu(gate) of the two halves of the result of `linear`: [..., columns / 2]; the weights in gated panels.

    Raises ValueError as `linear` does.
    """
    x, columns, depth = x.contiguous(), columns_of(panels), x.shape[-1]
    out = x.new_empty(*x.shape[:-1], columns // 2)
    _check(depth, panels, out, None)
    call(f"gated_linear_{SUFFIX[x.dtype]}", x.numel() // depth, depth, columns, x, panels, bias, out)
    return out


def convolution(x: Tensor, panels: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [B, depth, H, W] convolved by 1x1, or by 3x3 with one pixel of zero padding; [B, columns, H, W].

    Raises ValueError as `linear` does.
    """
    batch, depth, height, width = x.shape
    x = x.permute(0, 2, 3, 1).contiguous()
    residual = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
    taps = panels.shape[1 if panels.dtype == torch.float32 else 2]
    if taps == 1:
        return linear(x, panels, bias, residual).permute(0, 3, 1, 2)
    out = x.new_empty(batch, height, width, columns_of(panels))
    _check(depth, panels, out, residual, taps)
    kernel = convolution_kernel(x.dtype, taps, batch, height * width)
    call(kernel, batch, height, width, depth, out.shape[-1], x, panels, bias, residual, out)
    return out.permute(0, 3, 1, 2)


def columns_of(panels: Tensor) -> int:
    return panels.shape[0] * 2 * panels.shape[-2]


def _check(depth: int, panels: Tensor, out: Tensor, residual: Tensor | None, taps: int = 1) -> None:
    """Check shapes and dtypes, because the kernel would read out of bounds otherwise."""
    held = panels.numel() // columns_of(panels) // taps
    if depth != held or out.dtype != panels.dtype:
        raise ValueError(f"{out.dtype} of depth {depth} does not fit weights in {panels.dtype} of depth {held}")
    if residual is not None and (residual.shape != out.shape or residual.dtype != out.dtype):
        raise ValueError(
            f"a residual {list(residual.shape)}, {residual.dtype}, does not fit {list(out.shape)}, {out.dtype}"
        )
