"""8-bit integer convolutions for residual blocks, and linear layers for transformer blocks (`int8_linear`).

The input of such a convolution comes from GroupNorm and SiLU, so its range is known in advance: normalised values of a
channel are assumed to lie within `DEVIATIONS`, and the minimum of SiLU is -0.2785. A call therefore measures no range,
the norm writes integers directly, and an image does not depend on the others in its batch. The scale of each input
channel is multiplied into the weights, which have one scale per output channel (Krishnamoorthi 2018,
arXiv 1806.08342, sec. 3.1). Convolutions that Winograd's algorithm computes are as fast as in integers and stay exact.
"""

from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.errors import InputError
from latentdiff.models.attention import BasicTransformerBlock
from latentdiff.models.layers import ResnetBlock2D
from latentdiff.runtime.cpu_features import cpu_has
from latentdiff.runtime.int8_linear import quantise_block, unquantise_layers
from latentdiff.runtime.native import SUFFIX, load_kernels
from latentdiff.runtime.native_layers import NativeGroupNormSiLU, quantised_group_norm
from latentdiff.runtime.packed import PackedConv2d, unpack
from latentdiff.runtime.panels import has_convolution, prefers_winograd

quantised: Any = torch.ops.onednn
DEVIATIONS = 6.0
LEAST = 0.2785  # -min SiLU
ZERO = 14  # the integer that represents 0; the scale is at least LEAST / ZERO
TOP = 255
LARGE = 4096  # pixels


def quantise(unet: nn.Module) -> None:
    """Quantise layers of a prepared U-Net that follow a norm, in place; the weights are kept.

    The U-Net may have been called before. Raises InputError if the processor or the precision is not supported, or a
    compiler is missing.
    """
    weight = next(unet.parameters())
    can = weight.device.type == "cpu" and weight.dtype in SUFFIX and cpu_has("avx512_vnni")
    if not can or load_kernels() is None:
        raise InputError(
            "approximate='int8' needs a CPU with AVX-512 VNNI, dtype='bfloat16' or 'float32', and our CPU kernels; "
            "omit it"
        )
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            for norm, conv in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
                if type(norm) is NativeGroupNormSiLU and type(conv) is PackedConv2d and not _is_fast(conv):
                    _quantise(norm, conv)
        elif isinstance(block, BasicTransformerBlock):
            quantise_block(block)


def unquantise(model: nn.Module) -> None:
    """Restore the norms and layers that `prepare` installed."""
    unquantise_layers(model)
    for module in model.modules():
        if isinstance(module, Int8GroupNormSiLU):
            del module.steps
            module.__class__ = NativeGroupNormSiLU  # type: ignore[assignment]
        if isinstance(module, Int8Conv2d):
            del module.quantised
            module.__class__ = PackedConv2d  # type: ignore[assignment]


class Int8GroupNormSiLU(NativeGroupNormSiLU):
    """[B, C, H, W] to integers, uint8 [B, C, H + 2, W + 2], padded with zeros."""

    steps: Tensor  # float32 [C]: integers per unit

    def forward(self, x: Tensor, shift: Tensor | None = None, spare: bool = False) -> Tensor:
        return quantised_group_norm(self, x, shift, self.steps, ZERO)


class Int8Conv2d(PackedConv2d):
    """uint8 [B, C_in, H + 2, W + 2] -> [B, C_out, H, W] in the dtype of the weight.

    quantised: packed weight, its scales, zero points and bias.
    """

    quantised: tuple[Tensor, Tensor, Tensor, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        weight, scale, zeros, bias = self.quantised
        where = (bias, (1, 1), (0, 0), (1, 1), 1)
        return quantised.qconv2d_pointwise(
            x, 1.0, 0, weight, scale, zeros, *where, 1.0, 0, self.weight.dtype, "none", [], ""
        )

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return self(x).add_(residual)


def _is_fast(conv: PackedConv2d) -> bool:
    """Whether Winograd's algorithm computes the layer's large maps."""
    dtype = conv.weight.dtype
    return prefers_winograd(dtype) and has_convolution(conv.weight_shape, dtype, images=1, pixels=LARGE)


def _quantise(norm: Any, conv: Any) -> None:
    unpack(conv)  # an earlier call may have packed it
    reach = DEVIATIONS * norm.weight.float().abs() + norm.bias.float()  # SiLU(u) <= u
    step = torch.maximum(reach / (TOP - ZERO), torch.tensor(LEAST / ZERO))
    weight = conv.weight.float() * step[:, None, None]
    scale = weight.abs().amax((1, 2, 3)).clamp_min(1e-12) / 127
    rounded = (weight / scale[:, None, None, None]).round()
    bias = conv.bias.float() - ZERO * scale * rounded.sum((1, 2, 3))
    none = torch.zeros(len(scale), dtype=torch.int)
    packed = quantised.qconv_prepack(rounded.to(torch.int8), scale, 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None)
    norm.__class__, conv.__class__ = Int8GroupNormSiLU, Int8Conv2d
    norm.steps, conv.quantised = 1 / step, (packed, scale, none, bias)
