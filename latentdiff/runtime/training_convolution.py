"""3x3 convolutions whose weights do not train: in float32 on the CPU both passes use our kernels (panels.py)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentdiff.runtime.panels import convolution, has_convolution, to_panels

GEOMETRY = ((3, 3), (1, 1), (1, 1), (1, 1), 1)


class FrozenConv2d(nn.Conv2d):
    """[B, C_in, H, W] -> [B, C_out, H', W'], with gradients of the input but not of the weights.

    The gradient of the input of a 3x3 convolution with one pixel of padding is again such a convolution, with input and
    output channels exchanged and each kernel turned by 180 degrees. The weights of both are packed at the first call,
    and are held in addition to `weight`.
    """

    panels: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self._has_kernels(x):
            return super().forward(x)
        if self.panels is None:
            weight = self.weight.detach()
            self.panels = to_panels(weight), to_panels(weight.flip(2, 3).transpose(0, 1))
        out: Tensor = _Convolution.apply(x, *self.panels, self.bias)
        return out

    def _has_kernels(self, x: Tensor) -> bool:
        geometry = self.kernel_size, self.padding, self.stride, self.dilation, self.groups
        if geometry != GEOMETRY or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        if not x.dtype == self.weight.dtype == torch.float32:
            return False
        pixels = x.shape[2] * x.shape[3]
        shapes = self.weight.shape, self.weight.transpose(0, 1).shape
        return all(has_convolution(shape, x.dtype, len(x), pixels) for shape in shapes)


def freeze_convolutions(model: nn.Module) -> None:
    """Make every convolution of the model whose weight does not train a `FrozenConv2d`, in place."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and not layer.weight.requires_grad:
            layer.__class__ = FrozenConv2d


class _Convolution(torch.autograd.Function):
    """`convolution`, whose gradient is `convolution` with the other weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, panels: Tensor, of_gradient: Tensor, bias: Tensor | None) -> Tensor:
        ctx.of_gradient = of_gradient
        return convolution(x, panels, bias, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return convolution(grad, ctx.of_gradient, None, None), None, None, None
