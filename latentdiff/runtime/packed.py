"""Products on the CPU with weights that stay in the order oneDNN reads them in, and sums done in the same pass.

torch brings a weight into that order at each call; here it is done once, at the first call, when the size of the input
is known. `unpack` gives it back to the bit.
"""

from typing import Any

import torch
from torch import Tensor, nn

ops: Any = torch.ops.mkldnn


class PackedLinear(nn.Linear):
    """[..., in_features] -> [..., out_features]."""

    def forward(self, x: Tensor) -> Tensor:
        return ops._linear_pointwise(x, self._packed(x), self.bias, "none", [], "")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return ops._linear_pointwise.binary(x, residual, self._packed(x), self.bias, "add")

    def _packed(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not weight.is_mkldnn:
            weight = _hold(self, ops._reorder_linear_weight(weight, x.numel() // x.shape[-1]))
        return weight


class PackedConv2d(nn.Conv2d):
    """[B, C_in, H, W] -> [B, C_out, H', W'], channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return ops._convolution_pointwise(x, self._packed(x), self.bias, *self._geometry(), "none", [], "")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        how: tuple[Any, ...] = ("add", 1.0, None, [], None)
        return ops._convolution_pointwise.binary(x, residual, self._packed(x), self.bias, *self._geometry(), *how)

    def _geometry(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups

    def _packed(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not weight.is_mkldnn:
            size = list(x.shape)
            weight = _hold(self, ops._reorder_convolution_weight(weight, *self._geometry(), size))
        return weight


def _hold(layer: nn.Module, packed: Tensor) -> Tensor:
    layer.weight = nn.Parameter(packed, requires_grad=False)
    return packed


def unpack(layer: PackedLinear | PackedConv2d) -> None:
    """The weight as it was, to the bit."""
    if layer.weight.is_mkldnn:
        _hold(layer, layer.weight.to_dense())
