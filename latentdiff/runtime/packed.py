"""Linear layers and convolutions for the CPU whose weights are packed in the order the kernels read.

torch reorders a weight for oneDNN at each call; here that happens once. If our own kernels support a layer, its weight
is stored in panels of 32 columns, for any number of rows; `unpack` restores the weight to the bit. Weights are packed
at a model's first call, with large blocks mapped one by one; when a packed layer is called again, freed memory is kept.

With AMX, linear layers have one kernel (linear.cpp) and 3x3 convolutions have two: with few pixels (conv3x3_small.cpp)
the weights are most of what is read, 29 MB for 1280 channels at 8x8 pixels against 0.3 MB of the map; with more pixels,
the map (conv3x3_large.cpp). With AVX-512 BF16 the kernels for few pixels and for linear layers with GEGLU
(gated_linear.cpp) are faster than oneDNN's; other layers are oneDNN's. In float32, 3x3 convolutions of many pixels are
Winograd's (winograd.py).
"""

import math
import platform
from typing import Any, cast

import torch
from torch import Tensor, nn

from latentdiff.runtime.memory import keep_freed_memory, map_large_blocks
from latentdiff.runtime.native import call, provides
from latentdiff.runtime.winograd import suits_winograd, transformed_weight, winograd

ops: Any = torch.ops.mkldnn
COLUMNS, DEPTH, TILE = 32, 32, 16
FEW_ROWS = 128  # pixels of all images, up to which the kernel for few pixels is the fastest of ours on a CPU with AMX
FEW_PIXELS = 64  # of an image, up to which it is faster than oneDNN on a CPU with AVX-512 BF16


def cannot_pack(weight: Tensor) -> str:
    """The reason why weights like this one cannot be packed; an empty string if they can."""
    if weight.device.type != "cpu":
        return f"weights are packed on the CPU, not on {weight.device.type}"
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return f"weights are packed in float32 and bfloat16, not in {weight.dtype}"
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return "torch has no oneDNN for this processor"
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 for this processor"
    return ""


class Packed(nn.Module):
    """Base of the packed linear layer and convolution."""

    weight: Tensor

    @classmethod
    def can_replace(cls, layer: nn.Module) -> str:
        return cannot_pack(layer.weight)  # type: ignore[arg-type]

    @classmethod
    def install(cls, layer: nn.Module) -> None:
        layer.__class__ = cls

    def remove(self) -> None:
        unpack(cast("PackedLinear | PackedConv2d", self))
        self.__class__ = type(self).__bases__[1]


class PackedLinear(Packed, nn.Linear):
    """[..., in_features] -> [..., out_features]."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self._packed(x)
        if in_panels(weight):
            return linear(x, weight, self.bias, None)
        return ops._linear_pointwise(x, weight, self.bias, "none", [], "")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        weight = self._packed(x)
        if in_panels(weight):
            return linear(x, weight, self.bias, residual)
        return ops._linear_pointwise.binary(x, residual, weight, self.bias, "add")

    def gated(self, x: Tensor) -> Tensor | None:
        """value * gelu(gate) of the two halves of the output; None if no native kernel supports this layer."""
        weight = _in_order(self, ours=provides("gated_linear_bf16"), gated=True)
        return gated_linear(x, weight, self.bias) if in_panels(weight) else None

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def _packed(self, x: Tensor) -> Tensor:
        weight = _in_order(self, ours=provides("linear_bf16"))
        rows = x.numel() // x.shape[-1]
        return weight if _is_packed(weight) else _hold(self, ops._reorder_linear_weight(weight, rows))


class PackedConv2d(Packed, nn.Conv2d):
    """[B, C_in, H, W] -> [B, C_out, H', W'], channels last."""

    transformed: Tensor | None = None  # the weight for Winograd's algorithm, in addition to `weight`

    def forward(self, x: Tensor) -> Tensor:
        if suits_winograd(self, x):
            return winograd(x, transformed_weight(self), self.bias, None)
        weight = self._packed(x)
        if in_panels(weight):
            return convolution(x, weight, self.bias, None)
        if self._is_pointwise():
            return _to_map(ops._linear_pointwise(_to_rows(x), weight, self.bias, "none", [], ""))
        return ops._convolution_pointwise(x, weight, self.bias, *self._geometry(), "none", [], "")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        if suits_winograd(self, x):
            return winograd(x, transformed_weight(self), self.bias, residual)
        weight = self._packed(x)
        if in_panels(weight):
            return convolution(x, weight, self.bias, residual)
        if self._is_pointwise():
            return _to_map(ops._linear_pointwise.binary(_to_rows(x), _to_rows(residual), weight, self.bias, "add"))
        how: tuple[Any, ...] = ("add", 1.0, None, [], None)
        return ops._convolution_pointwise.binary(x, residual, weight, self.bias, *self._geometry(), *how)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _geometry(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups

    def _packed(self, x: Tensor) -> Tensor:
        weight = _in_order(self, ours=self._keeps_size() and x.numel() > 0 and provides(self._kernel(x)))
        if _is_packed(weight):
            return weight
        if self._is_pointwise():
            return _hold(self, ops._reorder_linear_weight(weight.flatten(1), len(x) * x.shape[2] * x.shape[3]))
        return _hold(self, ops._reorder_convolution_weight(weight, *self._geometry(), list(x.shape)))

    def _is_pointwise(self) -> bool:
        """Whether this is a 1x1 convolution, which the kernel of linear layers computes.

        oneDNN's own 1x1 convolution is 100 times slower on 4x4 pixels when its weight was packed for 8x8.
        """
        return self.kernel_size == (1, 1) and self._geometry() == ((0, 0), (1, 1), (1, 1), 1)

    def _kernel(self, x: Tensor) -> str:
        return _convolution_kernel(math.prod(self.kernel_size), x.shape[2] * x.shape[3], len(x))

    def _keeps_size(self) -> bool:
        around = tuple(side // 2 for side in self.kernel_size)
        return self._geometry() == (around, (1, 1), (1, 1), 1) and self.kernel_size in ((1, 1), (3, 3))


def _in_order(layer: PackedLinear | PackedConv2d, ours: bool, gated: bool = False) -> Tensor:
    """The weight in panels if requested and supported; else in oneDNN's order, or plain for oneDNN to reorder."""
    weight: Tensor = layer.weight
    (keep_freed_memory if _is_packed(weight) else map_large_blocks)()
    if in_panels(weight):
        if ours and in_gated_panels(weight) == gated:
            return weight
        weight = _hold(layer, from_panels(weight, layer.weight_shape))
    if ours and suits(layer.weight_shape, weight.dtype):
        weight = weight.to_dense().reshape(layer.weight_shape) if weight.is_mkldnn else weight
        return _hold(layer, to_gated_panels(weight) if gated else to_panels(weight))
    return weight


def _is_packed(weight: Tensor) -> bool:
    return weight.is_mkldnn or in_panels(weight)


def _hold(layer: nn.Module, packed: Tensor) -> Tensor:
    layer.weight = nn.Parameter(packed, requires_grad=False)
    return packed


def unpack(layer: PackedLinear | PackedConv2d) -> None:
    """Restore the plain weight, to the bit."""
    map_large_blocks()
    if isinstance(layer, PackedConv2d):
        vars(layer).pop("transformed", None)
    if layer.weight.is_mkldnn:
        _hold(layer, layer.weight.to_dense().reshape(layer.weight_shape))
    elif in_panels(layer.weight):
        _hold(layer, from_panels(layer.weight, layer.weight_shape))


def frozen_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A plain layer that shares these tensors, weight [out, in] and bias [out]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def suits(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether the kernels support weights [columns, depth] or [columns, depth, k, k], where k is 1 or 3."""
    divisible = shape[0] % COLUMNS == 0 and shape[1] % DEPTH == 0
    return dtype == torch.bfloat16 and divisible and math.prod(shape[2:]) in (1, 9)


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
    """The inverse of `to_panels` and `to_gated_panels`."""
    order = (2, 0, 4, 1, 3, 5) if in_gated_panels(panels) else (0, 3, 5, 1, 4, 6, 2)
    return panels.permute(order).reshape(shape)


def linear(x: Tensor, panels: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [..., depth] times the weights, plus bias [columns] and residual [..., columns]; bfloat16.

    Raises ValueError for a depth, a dtype or a residual that does not match.
    """
    x, columns = x.contiguous(), len(panels) * COLUMNS
    out = x.new_empty(*x.shape[:-1], columns)
    _check(x.shape[-1], panels, out, residual)
    residual = None if residual is None else residual.contiguous()
    call("linear_bf16", x.numel() // x.shape[-1], x.shape[-1], columns, x, panels, bias, residual, out)
    return out


def gated_linear(x: Tensor, panels: Tensor, bias: Tensor | None) -> Tensor:
    """value * gelu(gate) of the two halves of the result of `linear`: [..., columns / 2]; the weights in gated panels.

    Raises ValueError as `linear` does.
    """
    x, columns = x.contiguous(), len(panels) * COLUMNS
    out = x.new_empty(*x.shape[:-1], columns // 2)
    _check(x.shape[-1], panels, out, None)
    call("gated_linear_bf16", x.numel() // x.shape[-1], x.shape[-1], columns, x, panels, bias, out)
    return out


def convolution(x: Tensor, panels: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [B, depth, H, W] convolved by 1x1, or by 3x3 with one pixel of zero padding; [B, columns, H, W].

    Raises ValueError as `linear` does.
    """
    batch, depth, height, width = x.shape
    x = x.permute(0, 2, 3, 1).contiguous()
    out = x.new_empty(batch, height, width, len(panels) * COLUMNS)
    residual = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
    _check(depth, panels, out, residual)
    sizes = (batch, height, width) if panels.shape[2] == 9 else (batch * height * width,)
    call(
        _convolution_kernel(panels.shape[2], height * width, batch),
        *sizes,
        depth,
        out.shape[-1],
        x,
        panels,
        bias,
        residual,
        out,
    )
    return out.permute(0, 3, 1, 2)


def _to_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _to_map(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2)


def _convolution_kernel(taps: int, pixels: int, images: int) -> str:
    if taps == 1:
        return "linear_bf16"
    few = images * pixels <= FEW_ROWS if provides("large_convolution_bf16") else pixels <= FEW_PIXELS
    return "convolution_bf16" if few and pixels >= TILE else "large_convolution_bf16"


def _check(depth: int, panels: Tensor, out: Tensor, residual: Tensor | None) -> None:
    """Check shapes and dtypes, because the kernel would read out of bounds otherwise."""
    if depth != panels.shape[1] * DEPTH or out.dtype != panels.dtype:
        wanted = f"{panels.dtype} of depth {panels.shape[1] * DEPTH}"
        raise ValueError(f"{out.dtype} of depth {depth} does not fit weights in {wanted}")
    if residual is not None and (residual.shape != out.shape or residual.dtype != out.dtype):
        raise ValueError(
            f"a residual {list(residual.shape)}, {residual.dtype}, does not fit {list(out.shape)}, {out.dtype}"
        )
