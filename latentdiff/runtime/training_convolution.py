"""3x3 convolutions whose weights do not train: in float32 on the CPU both passes use Winograd's algorithm."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latentdiff.runtime.winograd import has_kernel, transform, winograd


class FrozenConv2d(nn.Conv2d):
    """[B, C_in, H, W] -> [B, C_out, H', W'], with gradients of the input but not of the weights.

    The gradient of the input of a 3x3 convolution with one pixel of padding is again such a convolution, with input and
    output channels exchanged and each kernel turned by 180 degrees. Both transformed weights are computed at the first
    call, and take eight times the memory of the weights.
    """

    transformed: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not (x.device.type == "cpu" and has_kernel(self, x.dtype) and not torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        if self.transformed is None:
            weight = self.weight.detach()
            self.transformed = transform(weight), transform(weight.flip(2, 3).transpose(0, 1))
        out: Tensor = _Winograd.apply(x, *self.transformed, self.bias)
        return out


def freeze_convolutions(model: nn.Module) -> None:
    """Make every convolution of the model whose weight does not train a `FrozenConv2d`, in place."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and not layer.weight.requires_grad:
            layer.__class__ = FrozenConv2d


class _Winograd(torch.autograd.Function):
    """`winograd`, whose gradient is `winograd` with the other transformed weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transformed: Tensor, of_gradient: Tensor, bias: Tensor | None) -> Tensor:
        ctx.of_gradient = of_gradient
        return winograd(x, transformed, bias, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return winograd(grad, ctx.of_gradient, None, None), None, None, None
