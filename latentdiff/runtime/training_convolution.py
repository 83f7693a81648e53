"""3x3 convolutions in training on the CPU: our kernels compute the output and the gradients of input and weight.

All three by Winograd's algorithm, with a quarter of the products of direct convolutions. With AMX, whose products are
many times as fast, weights that train are left to torch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from latentdiff.runtime.native import SUFFIX, call
from latentdiff.runtime.panels import convolution, has_convolution, prefers_winograd, to_panels

GEOMETRY = ((3, 3), (1, 1), (1, 1), (1, 1), 1)
MOST_WEIGHTS = 1024 * 1024  # input times output channels; the sums of their gradients take 144 bytes each


class TrainingConv2d(nn.Conv2d):
    """[B, C_in, H, W] -> [B, C_out, H', W'].

    The gradient of the input of a 3x3 convolution with one pixel of padding is again such a convolution, with input and
    output channels exchanged and each kernel turned by 180 degrees. A weight is packed at each call; one that does not
    train is packed for both directions at the first call, and kept.
    """

    panels: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if not self._has_kernels(x, dtype):
            return super().forward(x)
        if not self.weight.requires_grad and (self.panels is None or self.panels[0].dtype != dtype):
            weight = self.weight.to(dtype)
            self.panels = to_panels(weight), to_panels(_turned(weight))
        packed = None if self.weight.requires_grad else self.panels
        out: Tensor = _Convolution.apply(x.to(dtype), self.weight, self.bias, packed)
        return out

    def _has_kernels(self, x: Tensor, dtype: torch.dtype) -> bool:
        geometry = self.kernel_size, self.padding, self.stride, self.dilation, self.groups
        if geometry != GEOMETRY or x.device.type != "cpu" or dtype not in SUFFIX:
            return False
        if self.weight.requires_grad and not prefers_winograd(dtype):
            return False
        sizes, (columns, depth) = (dtype, len(x), x.shape[2] * x.shape[3]), self.weight.shape[:2]
        return has_convolution((columns, depth, 3, 3), *sizes) and has_convolution((depth, columns, 3, 3), *sizes)


def use_native_convolutions(model: nn.Module) -> None:
    """Make every convolution of the model a `TrainingConv2d`, in place."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = TrainingConv2d


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient, float32 [C_out, C_in, 3, 3], of a weight with input x [B, C_in, H, W] and output gradient `grad`.

    Both are float32 or bfloat16. Raises ValueError for maps or channels that do not fit.
    """
    (batch, depth, height, width), columns = x.shape, grad.shape[1]
    if grad.shape != (batch, columns, height, width) or grad.dtype != x.dtype:
        raise ValueError(f"gradient {list(grad.shape)}, {grad.dtype}, does not fit x {list(x.shape)}, {x.dtype}")
    out = x.new_empty(9, depth, columns, dtype=torch.float32)
    x, grad = (t.permute(0, 2, 3, 1).contiguous() for t in (x, grad))
    call(f"weight_gradient_{SUFFIX[x.dtype]}", batch, height, width, depth, columns, x, grad, out)
    return out.reshape(3, 3, depth, columns).permute(3, 2, 0, 1)


def _turned(weight: Tensor) -> Tensor:
    return weight.flip(2, 3).transpose(0, 1)


class _Convolution(torch.autograd.Function):
    """x [B, C_in, H, W], weight [C_out, C_in, 3, 3], bias [C_out]; packed: the weight in panels for both directions."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        ctx.packed = packed
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, None if packed else weight)
        panels = to_panels(weight.to(x.dtype)) if packed is None else packed[0]
        return convolution(x, panels, None if bias is None else bias.to(x.dtype), None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_input, of_weight, of_bias, _ = ctx.needs_input_grad
        grad_x = grad_weight = None
        if of_input:
            panels = to_panels(_turned(weight.to(grad.dtype))) if ctx.packed is None else ctx.packed[1]
            grad_x = convolution(grad, panels, None, None)
        if of_weight and weight.shape[0] * weight.shape[1] <= MOST_WEIGHTS:
            grad_weight = weight_gradient(x, grad)
        elif of_weight:
            grad_weight = conv2d_weight(x, weight.shape, grad, padding=1)
        return grad_x, grad_weight, grad.sum((0, 2, 3), dtype=torch.float32) if of_bias else None, None
