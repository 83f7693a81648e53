"""8-bit integer linear layers behind the LayerNorms of transformer blocks.

As in `int8`, the range of the input is known in advance: normalised values are assumed to lie within `DEVIATIONS`, so
that a call measures no range, the norm writes integers directly, and a row does not depend on other rows. Layers whose
input is the output of attention or of GEGLU have no such range and keep their precision.
"""

from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.models.attention import BasicTransformerBlock
from latentdiff.runtime.fused_attention import FusedCrossAttention, FusedSelfAttention
from latentdiff.runtime.native import SUFFIX, call
from latentdiff.runtime.packed import PackedLinear, unpack

ops: Any = torch.ops.onednn
DEVIATIONS = 6.0
ZERO = 128  # the integer that represents 0
REACH = 127


class Int8LayerNorm(nn.LayerNorm):
    """[..., C] to integers, uint8 [..., C]."""

    steps: Tensor  # float32 [C]: integers per unit

    def forward(self, x: Tensor) -> Tensor:
        x, out = x.contiguous(), torch.empty_like(x, dtype=torch.uint8)
        weight, bias = self.weight.float(), self.bias.float()
        sizes = (x.numel() // x.shape[-1], x.shape[-1])
        call(f"layer_norm_int8_{SUFFIX[x.dtype]}", *sizes, x, weight, bias, self.eps, self.steps, float(ZERO), out)
        return out


class Int8Linear(PackedLinear):
    """uint8 [..., in_features] -> [..., out_features] in the dtype of the weight.

    quantised: packed weight, its scales, zero points and bias.
    """

    quantised: tuple[Tensor, Tensor, Tensor, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        weight, scale, zeros, bias = self.quantised
        found: Tensor = ops.qlinear_pointwise(
            x, 1.0, 0, weight, scale, zeros, bias, 1.0, 0, self.weight.dtype, "none", [], ""
        )
        return found

    def gated(self, x: Tensor) -> None:
        """GEGLU is computed in its own pass."""


def quantise_block(block: BasicTransformerBlock) -> None:
    """Quantise the linear layers behind the LayerNorms of a prepared block in place; the weights are kept."""
    self_attention, cross_attention = block.attn1, block.attn2
    if isinstance(self_attention, FusedSelfAttention):
        _quantise(block.norm1, self_attention.fused)
    if isinstance(cross_attention, FusedCrossAttention):
        _quantise(block.norm2, cross_attention.to_q)
    _quantise(block.norm3, block.ff.net[0].proj)


def unquantise_layers(model: nn.Module) -> None:
    """Restore the norms and linear layers that `prepare` installed."""
    for module in model.modules():
        if isinstance(module, Int8LayerNorm):
            del module.steps
            module.__class__ = nn.LayerNorm  # type: ignore[assignment]
        if isinstance(module, Int8Linear):
            del module.quantised
            module.__class__ = PackedLinear  # type: ignore[assignment]


def _quantise(norm: Any, linear: Any) -> None:
    if (type(norm), type(linear)) != (nn.LayerNorm, PackedLinear):
        return
    unpack(linear)  # an earlier call may have packed it
    reach = DEVIATIONS * norm.weight.float().abs() + norm.bias.float().abs()
    step = (reach / REACH).clamp_min(1e-12)
    weight = linear.weight.float() * step
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    rounded = (weight / scale[:, None]).round()
    bias = -ZERO * scale * rounded.sum(1)
    if linear.bias is not None:
        bias += linear.bias.float()
    none = torch.zeros(len(scale), dtype=torch.int)
    packed = ops.qlinear_prepack(rounded.to(torch.int8), None)
    norm.__class__, linear.__class__ = Int8LayerNorm, Int8Linear
    norm.steps, linear.quantised = 1 / step, (packed, scale, none, bias)
