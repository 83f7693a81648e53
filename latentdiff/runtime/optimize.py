"""A model made ready to be called and not to be trained: its layers give way to ones that compute the same sooner."""

import platform

import torch
from torch import Tensor, nn

from latentdiff.models.attention import BasicTransformerBlock
from latentdiff.runtime.compiled import Compiled
from latentdiff.runtime.fused_attention import FusedAttention, FusedCrossAttention, FusedSelfAttention, fuse, split
from latentdiff.runtime.int8 import unquantise
from latentdiff.runtime.memory import map_large_blocks
from latentdiff.runtime.native_layers import SUFFIX, use_native_kernels, use_torch_kernels
from latentdiff.runtime.packed import PackedConv2d, PackedLinear, unpack
from latentdiff.runtime.time_embedding_cache import keep_time, restore_time


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
            fuse(module.attn1, FusedSelfAttention)
            fuse(module.attn2, FusedCrossAttention)


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
            split(module)
    restore_time(model)


PACKED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}
