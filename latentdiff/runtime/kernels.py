"""GroupNorm, SiLU and GEGLU by our native kernels, forward and backward: several times torch's speed on the CPU."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.models.attention import GEGLU
from latentdiff.models.layers import GroupNormSiLU
from latentdiff.runtime.native import load_kernels

SUFFIX = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def prepare(model: nn.Module) -> None:
    """Make a model on its device as fast as it can be without computing anything else; in place."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_native_kernels(model)


def use_native_kernels(model: nn.Module) -> None:
    """Let the layers of `model` that have a kernel run by it, on maps that it can read; weights and names stay."""
    if load_kernels() is None:
        return
    for module in model.modules():
        if type(module) in NATIVE:
            module.__class__ = NATIVE[type(module)]


class NativeGroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return _group_norm(self, x, silu=False) if _fits(x) else super().forward(x)


class NativeGroupNormSiLU(GroupNormSiLU):
    def forward(self, x: Tensor) -> Tensor:
        return _group_norm(self, x, silu=True) if _fits(x) else super().forward(x)


class NativeGEGLU(GEGLU):
    def forward(self, x: Tensor) -> Tensor:
        projected = self.proj(x)
        if not _fits(projected, torch.contiguous_format):
            return self.gate(projected)
        out: Tensor = _GEGLU.apply(projected)
        return out


NATIVE: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: NativeGroupNorm,
    GroupNormSiLU: NativeGroupNormSiLU,
    GEGLU: NativeGEGLU,
}


def _fits(x: Tensor, layout: torch.memory_format = torch.channels_last) -> bool:
    return x.device.type == "cpu" and x.dtype in SUFFIX and x.is_contiguous(memory_format=layout)


def _group_norm(norm: nn.GroupNorm, x: Tensor, silu: bool) -> Tensor:
    out: Tensor = _GroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    return out


class _GroupNorm(torch.autograd.Function):
    """x [B, C, H, W], channels last; sums in float32. Only x and two numbers a channel are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        ctx.name = f"group_norm{'_silu' if silu else ''}_{SUFFIX[x.dtype]}"
        ctx.sizes, ctx.dtypes = (len(x), x[0, 0].numel(), x.shape[1], groups), (weight.dtype, bias.dtype)
        weight, bias = weight.float(), bias.float()
        y = torch.empty_like(x)
        mean, rstd = (torch.empty(x.shape[:2]) for _ in range(2))
        _call(f"{ctx.name}_forward", *ctx.sizes, x, weight, bias, eps, y, mean, rstd)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        dweight, dbias = (torch.empty(x.shape[:2]) for _ in range(2))
        _call(f"{ctx.name}_backward", *ctx.sizes, x, dy, weight, bias, mean, rstd, dx, dweight, dbias)
        of_weight, of_bias = ctx.dtypes
        return dx, dweight.sum(0).to(of_weight), dbias.sum(0).to(of_bias), None, None, None


class _GEGLU(torch.autograd.Function):
    """x [..., 2 * width], value before gate. Returns [..., width]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        width = x.shape[-1] // 2
        ctx.name, ctx.sizes = f"geglu_{SUFFIX[x.dtype]}", (x.numel() // (2 * width), width)
        y = x.new_empty(*x.shape[:-1], width)
        _call(f"{ctx.name}_forward", *ctx.sizes, x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _call(f"{ctx.name}_backward", *ctx.sizes, x, grads[0].contiguous(), dx)
        return dx


def _call(name: str, *arguments: Tensor | int | float) -> None:
    getattr(load_kernels(), name)(*(_to_c(a) for a in arguments))


def _to_c(value: Tensor | int | float) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)
