"""A linear layer with a low-rank pair (Hu et al. 2022), trained in float32 with two passes over memory fewer each way.

peft adds the output of the pair, and autograd the two gradients of the input, in passes over the whole tensor; here the
second product of each adds to the result of the first.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LoraLinear(Linear):
    """peft's layer, without dropout: x W^T + b + s x A^T B^T, where W and b are frozen."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.get_base_layer()
        usual = self.active_adapters == list(self.lora_A) and not (self.disable_adapters or self.merged)
        exact = x.dtype == base.weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        if not (usual and exact):
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        (name,) = self.active_adapters
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        out: Tensor = _LowRankLinear.apply(x, base.weight, base.bias, down, up, self.scaling[name])
        return out


class _LowRankLinear(torch.autograd.Function):
    """x [..., in], weight [out, in], bias [out], down [rank, in], up [out, rank]: [..., out]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = (rows @ down.T).mul_(scale)
        out = torch.mm(rows, weight.T)
        if bias is None:
            out.addmm_(low, up.T)
        else:  # the bias is added by the same product, as one more row of `up` that is always taken once
            out.addmm_(F.pad(low, (0, 1), value=1.0), torch.cat([up.T, bias[None]]))
        ctx.save_for_backward(rows, weight, down, up, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.reshape(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, weight, down, up, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = (grad @ up).mul_(ctx.scale)
        grad_x = (grad @ weight).addmm_(grad_low, down).reshape(ctx.shape) if ctx.needs_input_grad[0] else None
        # `low.T @ grad` takes three quarters of the time of `grad.T @ low`: both read `grad` once, in another order
        return grad_x, None, None, grad_low.T @ rows, (low.T @ grad).T.contiguous(), None
