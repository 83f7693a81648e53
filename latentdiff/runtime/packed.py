"""Products on the CPU with weights that stay in the order they are read in, and sums done in the same pass.

torch brings a weight into oneDNN's order at each call; here it is done once. Where our own kernels can take a layer,
the order is theirs (panels.py), for any number of rows. `unpack` gives a weight back to the bit. Weights are packed at
a model's first call, whose large blocks are mapped one by one; when a packed layer is called again, what is freed is
kept.
"""

from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.runtime.memory import keep_freed_memory, map_large_blocks
from latentdiff.runtime.panels import (
    convolution,
    from_panels,
    gated_linear,
    in_gated_panels,
    in_panels,
    linear,
    suits,
    to_gated_panels,
    to_panels,
)

ops: Any = torch.ops.mkldnn


class PackedLinear(nn.Linear):
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
        """value * gelu(gate) of the answer's halves, or None where no kernel of ours can take this layer."""
        weight = _in_order(self, ours=True, gated=True)
        return gated_linear(x, weight, self.bias) if in_panels(weight) else None

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def _packed(self, x: Tensor) -> Tensor:
        weight = _in_order(self, ours=True)
        rows = x.numel() // x.shape[-1]
        return weight if _is_packed(weight) else _hold(self, ops._reorder_linear_weight(weight, rows))


class PackedConv2d(nn.Conv2d):
    """[B, C_in, H, W] -> [B, C_out, H', W'], channels last."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self._packed(x)
        if in_panels(weight):
            return convolution(x, weight, self.bias, None)
        return ops._convolution_pointwise(x, weight, self.bias, *self._geometry(), "none", [], "")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        weight = self._packed(x)
        if in_panels(weight):
            return convolution(x, weight, self.bias, residual)
        how: tuple[Any, ...] = ("add", 1.0, None, [], None)
        return ops._convolution_pointwise.binary(x, residual, weight, self.bias, *self._geometry(), *how)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _geometry(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups

    def _packed(self, x: Tensor) -> Tensor:
        weight = _in_order(self, ours=self._keeps_size() and x.numel() > 0)
        if _is_packed(weight):
            return weight
        return _hold(self, ops._reorder_convolution_weight(weight, *self._geometry(), list(x.shape)))

    def _keeps_size(self) -> bool:
        around = tuple(side // 2 for side in self.kernel_size)
        return self._geometry() == (around, (1, 1), (1, 1), 1) and self.kernel_size in ((1, 1), (3, 3))


def _in_order(layer: PackedLinear | PackedConv2d, ours: bool, gated: bool = False) -> Tensor:
    """The weight in panels where they are wanted and can be; otherwise oneDNN's, or plain for it to reorder."""
    weight: Tensor = layer.weight
    (keep_freed_memory if _is_packed(weight) else map_large_blocks)()
    if in_panels(weight):
        if ours and in_gated_panels(weight) == gated:
            return weight
        weight = _hold(layer, from_panels(weight, layer.weight_shape))
    if ours and suits(layer.weight_shape, weight.dtype):
        weight = weight.to_dense() if weight.is_mkldnn else weight
        return _hold(layer, to_gated_panels(weight) if gated else to_panels(weight))
    return weight


def _is_packed(weight: Tensor) -> bool:
    return weight.is_mkldnn or in_panels(weight)


def _hold(layer: nn.Module, packed: Tensor) -> Tensor:
    layer.weight = nn.Parameter(packed, requires_grad=False)
    return packed


def unpack(layer: PackedLinear | PackedConv2d) -> None:
    """The weight as it was, to the bit."""
    map_large_blocks()
    if layer.weight.is_mkldnn:
        _hold(layer, layer.weight.to_dense())
    elif in_panels(layer.weight):
        _hold(layer, from_panels(layer.weight, layer.weight_shape))


def frozen_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A plain layer of these very tensors, weight [out, in] and bias [out]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
