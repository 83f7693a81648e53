"""Attention whose products that read the same input are one."""

import torch
from torch import Tensor, nn

from latentdiff.models.attention import Attention
from latentdiff.runtime.native_layers import fast_attention
from latentdiff.runtime.packed import frozen_linear


class FusedAttention(Attention):
    """Several of its layers are one, `fused`, whose outputs lie side by side."""

    parts: tuple[str, ...]
    fused: nn.Linear


class FusedSelfAttention(FusedAttention):
    parts = ("to_q", "to_k", "to_v")

    def attend(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.fused(x).chunk(3, dim=-1)
        return fast_attention(q, k, v, self.heads)


class FusedCrossAttention(FusedAttention):
    """Keys and values of a text are computed when it is first seen and kept until another comes."""

    parts = ("to_k", "to_v")
    kept: tuple[Tensor, int, Tensor] | None = None

    def attend(self, x: Tensor, context: Tensor) -> Tensor:
        version = 0 if context.is_inference() else context._version  # it grows when a tensor is written to
        kept = self.kept
        if kept is None or kept[0] is not context or kept[1] != version:
            self.kept = kept = (context, version, self.fused(context))
        k, v = kept[2].chunk(2, dim=-1)
        return fast_attention(self.to_q(x), k, v, self.heads)


def fuse(attention: Attention, kind: type[FusedAttention]) -> None:
    layers = [getattr(attention, name, None) for name in kind.parts]
    if any(type(layer) is not nn.Linear for layer in layers):  # prepared already, or with a LoRA around them
        return
    fused = frozen_linear(torch.cat([layer.weight for layer in layers]))  # type: ignore[union-attr]
    for name in kind.parts:
        delattr(attention, name)
    attention.__class__ = kind
    attention.fused = fused


def split(attention: FusedAttention) -> None:
    """`fuse` undone."""
    weights = attention.fused.weight.chunk(len(attention.parts))
    for name, weight in zip(attention.parts, weights, strict=True):
        setattr(attention, name, frozen_linear(weight.clone()))
    del attention.fused
    attention.__dict__.pop("kept", None)
    attention.__class__ = Attention  # type: ignore[assignment]
