"""Linear layers and convolutions for the CPU whose weights are packed in the order the kernels read.

torch reorders a weight for oneDNN at each call; here that happens once. If our own kernels support a layer, its weight
is stored in panels (panels.py), for any number of rows; `unpack` restores the weight to the bit. Weights are packed at
a model's first call, with large blocks mapped one by one; when a packed layer is called again, freed memory is kept.

With AMX, linear layers have one kernel (linear.cpp) and 3x3 convolutions have two: with few pixels (conv3x3_small.cpp)
the weights are most of what is read, 29 MB for 1280 channels at 8x8 pixels against 0.3 MB of the map; with more pixels,
the map (conv3x3_large.cpp). Without AMX, 3x3 convolutions of many pixels are computed by Winograd's algorithm
(conv3x3_winograd.cpp), in float32 and in bfloat16. In float32 we also compute linear layers and 3x3 convolutions of few
pixels (linear_fp32.cpp); with AVX-512 BF16, the latter and linear layers with GEGLU (gated_linear.cpp). Other layers
are oneDNN's.
"""

import platform
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.runtime.memory import keep_freed_memory, map_large_blocks
from latentdiff.runtime.panels import (
    Order,
    convolution,
    gated_linear,
    has_convolution,
    has_linear,
    linear,
    order_of,
    plain_weight,
    to_gated_panels,
    to_panels,
)

ops: Any = torch.ops.mkldnn


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
        unpack(self)
        self.__class__ = type(self).__bases__[1]

    def pack(self, order: Order, x: Tensor) -> Tensor:
        """The weight in this order, in which it stays; x: the input, for which oneDNN selects its own."""
        weight = self.weight
        if order_of(weight) is order:
            keep_freed_memory()
            return weight
        map_large_blocks()
        weight = plain_weight(weight, self.weight_shape)
        if order is Order.ONEDNN:
            return _hold(self, self.reordered(weight, x))
        return _hold(self, (to_gated_panels if order is Order.GATED else to_panels)(weight))

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the plain weight."""

    @abstractmethod
    def reordered(self, weight: Tensor, x: Tensor) -> Tensor:
        """The weight in oneDNN's order."""


class PackedLinear(Packed, nn.Linear):
    """[..., in_features] -> [..., out_features]."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self._packed(x)
        if order_of(weight) is Order.PANELS:
            return linear(x, weight, self.bias, None)
        return ops._linear_pointwise(x, weight, self.bias, "none", [], "")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        weight = self._packed(x)
        if order_of(weight) is Order.PANELS:
            return linear(x, weight, self.bias, residual)
        return ops._linear_pointwise.binary(x, residual, weight, self.bias, "add")

    def gated(self, x: Tensor) -> Tensor | None:
        """value * gelu(gate) of the two halves of the output; None if no native kernel supports this layer."""
        weight = self.weight
        if order_of(weight) is not Order.GATED and not has_linear("gated_linear", self.weight_shape, weight.dtype):
            return None
        return gated_linear(x, self.pack(Order.GATED, x), self.bias)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def reordered(self, weight: Tensor, x: Tensor) -> Tensor:
        return ops._reorder_linear_weight(weight, x.numel() // x.shape[-1])

    def _packed(self, x: Tensor) -> Tensor:
        order = order_of(self.weight)
        if order is Order.PLAIN or order is Order.GATED:
            ours = has_linear("linear", self.weight_shape, self.weight.dtype)
            order = Order.PANELS if ours else Order.ONEDNN
        return self.pack(order, x)


class PackedConv2d(Packed, nn.Conv2d):
    """[B, C_in, H, W] -> [B, C_out, H', W'], channels last."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self._packed(x)
        if order_of(weight) is Order.PANELS:
            return convolution(x, weight, self.bias, None)
        if self._is_pointwise():
            return _to_map(ops._linear_pointwise(_to_rows(x), weight, self.bias, "none", [], ""))
        return ops._convolution_pointwise(x, weight, self.bias, *self._geometry(), "none", [], "")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        weight = self._packed(x)
        if order_of(weight) is Order.PANELS:
            return convolution(x, weight, self.bias, residual)
        if self._is_pointwise():
            return _to_map(ops._linear_pointwise.binary(_to_rows(x), _to_rows(residual), weight, self.bias, "add"))
        how: tuple[Any, ...] = ("add", 1.0, None, [], None)
        return ops._convolution_pointwise.binary(x, residual, weight, self.bias, *self._geometry(), *how)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def reordered(self, weight: Tensor, x: Tensor) -> Tensor:
        if self._is_pointwise():
            return ops._reorder_linear_weight(weight.flatten(1), len(x) * x.shape[2] * x.shape[3])
        return ops._reorder_convolution_weight(weight, *self._geometry(), list(x.shape))

    def _geometry(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups

    def _packed(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        ours = self._keeps_size() and has_convolution(self.weight_shape, self.weight.dtype, batch, height * width)
        return self.pack(Order.PANELS if ours else Order.ONEDNN, x)

    def _is_pointwise(self) -> bool:
        """Whether this is a 1x1 convolution, which the kernel of linear layers computes.

        oneDNN's own 1x1 convolution is 100 times slower on 4x4 pixels when its weight was packed for 8x8.
        """
        return self.kernel_size == (1, 1) and self._geometry() == ((0, 0), (1, 1), (1, 1), 1)

    def _keeps_size(self) -> bool:
        around = tuple(side // 2 for side in self.kernel_size)
        return self._geometry() == (around, (1, 1), (1, 1), 1) and self.kernel_size in ((1, 1), (3, 3))


def _hold(layer: Packed, weight: Tensor) -> Tensor:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return weight


def unpack(layer: Packed) -> None:
    """Restore the plain weight, to the bit."""
    map_large_blocks()
    if order_of(layer.weight) is not Order.PLAIN:
        _hold(layer, plain_weight(layer.weight, layer.weight_shape))


def frozen_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A plain layer that shares these tensors, weight [out, in] and bias [out]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _to_rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _to_map(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2)
