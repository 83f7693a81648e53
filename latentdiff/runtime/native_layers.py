"""Layers with native CPU kernels: GroupNorm, SiLU and GEGLU, forward and backward, and attention."""

from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.models.attention import GEGLU, SpatialSelfAttention, attention
from latentdiff.models.layers import GroupNormSiLU
from latentdiff.runtime.native import SUFFIX, call, load_kernels, provides, why_none
from latentdiff.runtime.packed import PackedLinear


class Native(nn.Module):
    """Base of the layers with native kernels: they replace plain ones and keep their weights and names."""

    @classmethod
    def can_replace(cls, module: nn.Module) -> str:
        weight = next(module.parameters(), None)
        if weight is not None and weight.device.type != "cpu":
            return f"native kernels run on the CPU, not on {weight.device.type}"
        return "" if load_kernels() is not None else why_none()

    @classmethod
    def install(cls, module: nn.Module) -> None:
        module.__class__ = cls

    def remove(self) -> None:
        self.__class__ = type(self).__bases__[1]


def use_native_kernels(model: nn.Module) -> None:
    """Replace the layers of `model` that have a native kernel; also for training."""
    for module in model.modules():
        if (native := NATIVE.get(type(module))) and not native.can_replace(module):
            native.install(module)


class NativeGroupNorm(Native, nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return _group_norm(self, x, None, silu=False) if _fits(x) else super().forward(x)


class NativeGroupNormSiLU(Native, GroupNormSiLU):
    def forward(self, x: Tensor, shift: Tensor | None = None, spare: bool = False) -> Tensor:
        return _group_norm(self, x, shift, True, spare) if _fits(x) else super().forward(x, shift)


class NativeGEGLU(Native, GEGLU):
    def forward(self, x: Tensor) -> Tensor:
        gated = self.proj.gated(x) if isinstance(self.proj, PackedLinear) else None
        if gated is not None:
            return gated
        projected = self.proj(x)
        if not _fits(projected, torch.contiguous_format):
            return self.gate(projected)
        out: Tensor = _GEGLU.apply(projected)
        return out


NATIVE: dict[type[nn.Module], type[Native]] = {
    nn.GroupNorm: NativeGroupNorm,
    GroupNormSiLU: NativeGroupNormSiLU,
    GEGLU: NativeGEGLU,
}


def _fits(x: Tensor, layout: torch.memory_format = torch.channels_last) -> bool:
    fits = x.device.type == "cpu" and x.dtype in SUFFIX and x.is_contiguous(memory_format=layout)
    return fits and load_kernels() is not None


def fast_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`models.attention.attention` with our kernel if one applies. No gradients."""
    dim, suffix = q.shape[-1] // heads, SUFFIX.get(q.dtype)
    odd = q.dtype == torch.bfloat16 and dim % 2 == 1  # the kernel reads pairs
    if q.device.type != "cpu" or suffix is None or odd or len(k) != len(q) or not provides(f"attention_{suffix}"):
        return attention(q, k, v, heads)
    out = q.new_empty(q.shape)
    (q_batch, q_row), (k_batch, k_row), (v_batch, v_row) = (t.stride()[:2] for t in (q, k, v))
    sizes = (len(q), heads, q.shape[1], k.shape[1], dim, dim**-0.5)
    call(f"attention_{suffix}", *sizes, q, q_batch, q_row, k, k_batch, k_row, v, v_batch, v_row, out)
    return out


class NativeSpatialSelfAttention(Native, SpatialSelfAttention):
    """The VAE's attention. No gradients, so it is not in NATIVE."""

    def attend(self, x: Tensor) -> Tensor:
        return fast_attention(self.to_q(x), self.to_k(x), self.to_v(x), heads=1)


def _group_norm(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None, silu: bool, spare: bool = False) -> Tensor:
    if not torch.is_grad_enabled():
        affine = norm.weight.float(), norm.bias.float()
        return _forward(x, shift, *affine, norm.num_groups, norm.eps, silu, spare)[0]
    if shift is not None:
        x = x + shift[:, :, None, None]
    out: Tensor = _GroupNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    return out


def quantised_group_norm(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None, steps: Tensor, zero: int) -> Tensor:
    """round(SiLU(GroupNorm(x + shift)) * steps + zero), within 0 and 255, padded with `zero`.

    x: bfloat16 or float32 [B, C, H, W], shift: [B, C], steps: float32 [C]. Returns uint8 [B, C, H + 2, W + 2]. No
    gradients.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    framed = torch.full((batch, height + 2, width + 2, channels), zero, dtype=torch.uint8).permute(0, 3, 1, 2)
    if shift is not None:
        shift = shift.float().expand(batch, -1).contiguous()
    weight, bias = norm.weight.float(), norm.bias.float()
    name, sizes = f"group_norm_silu_int8_{SUFFIX[x.dtype]}", (*_sizes(x, norm.num_groups), width)
    call(name, *sizes, x, shift, weight, bias, norm.eps, steps, float(zero), framed)
    return framed


def _forward(
    x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, spare: bool
) -> tuple[Tensor, Tensor]:
    """GroupNorm of x [B, C, H, W], channels last, plus shift [B, C]; also mean and 1 / deviation, float32 [2, B, C].

    spare: write the output into x.
    """
    y, statistics = x if spare else torch.empty_like(x), x.new_empty(2, *x.shape[:2], dtype=torch.float32)
    if shift is not None:
        shift = shift.float().expand(len(x), -1).contiguous()
    call(f"{_name(x, silu)}_forward", *_sizes(x, groups), x, shift, weight, bias, eps, y, statistics)
    return y, statistics


def _name(x: Tensor, silu: bool) -> str:
    return f"group_norm{'_silu' if silu else ''}_{SUFFIX[x.dtype]}"


def _sizes(x: Tensor, groups: int) -> tuple[int, ...]:
    batch, channels, height, width = x.shape
    return batch, height * width, channels, groups


class _GroupNorm(torch.autograd.Function):
    """x [B, C, H, W], channels last; sums in float32. Saves only x and two values per channel for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        ctx.groups, ctx.silu, ctx.dtypes = groups, silu, (weight.dtype, bias.dtype)
        weight, bias = weight.float(), bias.float()
        y, statistics = _forward(x, None, weight, bias, groups, eps, silu, spare=False)
        ctx.save_for_backward(x, weight, bias, statistics)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, statistics = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        dx, sums = torch.empty_like(x), torch.empty_like(statistics)  # for weight and bias, per image
        call(f"{_name(x, ctx.silu)}_backward", *_sizes(x, ctx.groups), x, dy, weight, bias, statistics, dx, sums)
        dweight, dbias = (total.to(dtype) for total, dtype in zip(sums.sum(1), ctx.dtypes, strict=True))
        return dx, dweight, dbias, None, None, None


class _GEGLU(torch.autograd.Function):
    """x [..., 2 * width], value before gate. Returns [..., width]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        width = x.shape[-1] // 2
        ctx.name, ctx.sizes = f"geglu_{SUFFIX[x.dtype]}", (x.numel() // (2 * width), width)
        y = x.new_empty(*x.shape[:-1], width)
        call(f"{ctx.name}_forward", *ctx.sizes, x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        call(f"{ctx.name}_backward", *ctx.sizes, x, grads[0].contiguous(), dx)
        return dx
