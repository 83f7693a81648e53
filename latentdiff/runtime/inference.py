"""A model made ready to be called and not to be trained: its layers give way to ones that compute the same sooner."""

import platform

import torch
from torch import Tensor, nn

from latentdiff.models.attention import Attention, BasicTransformerBlock
from latentdiff.runtime.compiled import Compiled
from latentdiff.runtime.int8 import unquantise
from latentdiff.runtime.kernels import SUFFIX, fast_attention, use_native_kernels, use_torch_kernels
from latentdiff.runtime.memory import map_large_blocks
from latentdiff.runtime.packed import PackedConv2d, PackedLinear, frozen_linear, unpack
from latentdiff.runtime.timesteps import keep_time, restore_time


def prepare(model: nn.Module) -> None:
    """Make a model on its device as fast as it can be without computing anything else; in place.

    It gives no gradients then, and its layers are not to be touched until `restore`.
    """
    weight = next(model.parameters())
    make_room(weight)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if weight.device.type == "cpu":
        use_native_kernels(model)
    _fuse_attentions(model)
    if _can_pack(weight):
        _pack(model)


def make_room(like: Tensor) -> None:
    """Where weights like this one are going to be packed, have them lie apart from activations."""
    if _can_pack(like):
        map_large_blocks()


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype not in SUFFIX:
        return False
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _fuse_attentions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, BasicTransformerBlock):
            _fuse(module.attn1, FusedSelfAttention)
            _fuse(module.attn2, FusedCrossAttention)


def _pack(model: nn.Module) -> None:
    keep_time(model)
    for module in model.modules():
        if type(module) in PACKED:
            module.__class__ = PACKED[type(module)]


def restore(model: nn.Module) -> None:
    """The layers as they were, for weights to be read from and written to, and for torch.compile to look into."""
    unquantise(model)
    use_torch_kernels(model)
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Compiled):
            del module.forward
        if isinstance(module, PackedLinear | PackedConv2d):
            unpack(module)
            module.__class__ = type(module).__bases__[0]
    for module in model.modules():
        if isinstance(module, FusedAttention):
            _split(module)
    restore_time(model)


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


def _fuse(attention: Attention, kind: type[FusedAttention]) -> None:
    layers = [getattr(attention, name, None) for name in kind.parts]
    if any(type(layer) is not nn.Linear for layer in layers):  # prepared already, or with a LoRA around them
        return
    fused = frozen_linear(torch.cat([layer.weight for layer in layers]))  # type: ignore[union-attr]
    for name in kind.parts:
        delattr(attention, name)
    attention.__class__ = kind
    attention.fused = fused


def _split(attention: FusedAttention) -> None:
    weights = attention.fused.weight.chunk(len(attention.parts))
    for name, weight in zip(attention.parts, weights, strict=True):
        setattr(attention, name, frozen_linear(weight.clone()))
    del attention.fused
    attention.__dict__.pop("kept", None)
    attention.__class__ = Attention  # type: ignore[assignment]


PACKED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}
