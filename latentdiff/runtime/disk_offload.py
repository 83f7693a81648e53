"""Disk offload: each block maps its weights from their files for the duration of one forward pass."""

from collections.abc import Iterator
from threading import RLock
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.checkpoints.tensor_locations import TensorLocation, map_tensors
from latentdiff.models.attention import Attention, SpatialSelfAttention
from latentdiff.models.conditioning import Conditioning
from latentdiff.runtime.native_layers import NativeSpatialSelfAttention, fast_attention, use_native_kernels

BLOCK_BYTES = 32 * 1024 * 1024
ALIGNMENT = 64  # bytes


def offload_weights(model: nn.Module, locations: dict[str, TensorLocation], dtype: torch.dtype, fast: bool) -> None:
    """Make a model on the meta device map its weights from their files at each call, block by block; on the CPU.

    Aligned weights in the file's dtype are used directly from the mapping, without a copy. fast: use native kernels.
    Several threads may call the model; each block runs for one thread at a time.
    """
    empty = {key: _placeholder(location.shape, dtype) for key, location in locations.items()}
    model.load_state_dict(empty, assign=True)
    if fast:
        _use_kernels(model)
    for name, block in _blocks(model):
        _offload(block, [(weight, locations[f"{name}.{key}"]) for key, weight in block.named_parameters()])


def _placeholder(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A NaN expanded to the shape: a weight that was not mapped makes the output NaN."""
    return torch.full((), float("nan"), dtype=dtype).expand(shape)


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The largest submodules of at most `BLOCK_BYTES`, or single layers; never the model itself."""
    for name, part in model.named_children():
        size = sum(weight.nbytes for weight in part.parameters())
        never_called = type(part).forward is nn.Module.forward
        if never_called or (size > BLOCK_BYTES and any(True for _ in part.children())):
            yield from ((f"{name}.{inner}", block) for inner, block in _blocks(part))
        elif size:
            yield name, part


def _offload(block: nn.Module, own: list[tuple[nn.Parameter, TensorLocation]]) -> None:
    empty = [weight.data for weight, _ in own]
    free = RLock()

    def forward(block: nn.Module, *arguments: Any, **options: Any) -> Any:
        with free:
            try:
                for (weight, _), tensor in zip(own, map_tensors(location for _, location in own), strict=True):
                    weight.data = _aligned(tensor.to(weight.dtype))
                return type(block).forward(block, *arguments, **options)
            finally:
                for (weight, _), nothing in zip(own, empty, strict=True):
                    weight.data = nothing

    block.forward = MethodType(forward, block)


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, copied unless its address is a multiple of 64 bytes, as for tensors that torch allocates.

    Matrix products may round differently at other addresses (MKL in float32 on AMD processors does).
    """
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


class KernelAttention(Attention):
    def attend(self, x: Tensor, conditioning: Conditioning | None) -> Tensor:
        context = x if conditioning is None else conditioning.hidden
        return fast_attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads)


def _use_kernels(model: nn.Module) -> None:
    """Use native kernels, with channels-last feature maps; weights keep the layout of the file."""
    use_native_kernels(model)
    for name, module in model.named_modules():
        if type(module) is Attention:
            module.__class__ = KernelAttention
        elif type(module) is SpatialSelfAttention:
            module.__class__ = NativeSpatialSelfAttention
        elif name.rpartition(".")[2] == "conv_in":
            module.register_forward_pre_hook(_channels_last)


def _channels_last(_: nn.Module, arguments: tuple[Tensor]) -> Tensor:
    return arguments[0].contiguous(memory_format=torch.channels_last)
