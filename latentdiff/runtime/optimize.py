"""Replace the plain layers of a model by fast ones from one registry, and restore the plain ones."""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from latentdiff.models.attention import Attention, SpatialSelfAttention
from latentdiff.models.layers import Upsample2D
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime.compiled import Compiled
from latentdiff.runtime.fused_attention import FusedAttention
from latentdiff.runtime.fused_upsample import FusedUpsample
from latentdiff.runtime.int8 import unquantise
from latentdiff.runtime.memory import map_large_blocks
from latentdiff.runtime.native_layers import NATIVE, NativeSpatialSelfAttention
from latentdiff.runtime.packed import PackedConv2d, PackedLinear, cannot_pack
from latentdiff.runtime.time_embedding_cache import TimeEmbeddingCache


class FastLayer(Protocol):
    """A class that computes the same as a plain module class, in less time and without gradients."""

    @classmethod
    def can_replace(cls, module: nn.Module) -> str:
        """The reason why it cannot replace this module on this machine; an empty string if it can."""

    @classmethod
    def install(cls, module: nn.Module) -> None:
        """Convert the module to the fast class in place."""

    def remove(self) -> None:
        """Undo `install`: restore the plain class, and its weights to the bit."""


# In this order: the first two gather linear layers into one, which is packed afterwards.
REGISTRY: dict[type[nn.Module], type[FastLayer]] = {
    UNet2DConditionModel: TimeEmbeddingCache,
    Attention: FusedAttention,
    SpatialSelfAttention: NativeSpatialSelfAttention,
    Upsample2D: FusedUpsample,
    **cast(dict[type[nn.Module], type[FastLayer]], NATIVE),
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
}


def prepare(model: nn.Module) -> None:
    """Replace every layer that has an applicable fast class, in place; the model must already be on its device.

    Afterwards the model computes no gradients, and its layers must not be modified until `restore`.
    """
    map_weights_separately(next(model.parameters()))
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for plain, fast in REGISTRY.items():
        for module in list(model.modules()):
            if type(module) is plain and not fast.can_replace(module):
                fast.install(module)


def map_weights_separately(like: Tensor) -> None:
    """If weights like this one will be packed, allocate them separately from activations (see `memory`)."""
    if not cannot_pack(like):
        map_large_blocks()


def restore(model: nn.Module, layers: Collection[str] | None = None) -> None:
    """Restore the plain layers, so that their weights can be read or written, or compiled by torch.compile.

    layers: names of plain layers; only these and the modules they are in are restored.
    """
    unquantise(model)
    held = None if layers is None else _restored(model, layers)
    for fast in reversed(REGISTRY.values()):
        for name, module in list(model.named_modules()):
            if held is not None and name not in held:
                continue
            if isinstance(vars(module).get("forward"), Compiled):
                del module.forward
            if isinstance(module, cast(type, fast)):
                cast(FastLayer, module).remove()


def _restored(model: nn.Module, layers: Collection[str]) -> set[str]:
    """Names of these layers, of the modules that contain them, and of the children of fast modules among those.

    The U-Net itself, whose fast class caches time embeddings, is included only if one of their layers is.
    """
    found = {""} if any("time_emb" in name or "add_embedding" in name for name in layers) else set()
    for name in layers:
        while name:
            found.add(name)
            name = name.rpartition(".")[0]
    fast = tuple(cast(type, kind) for kind in REGISTRY.values())
    holders = [name for name, module in model.named_modules() if name in found and isinstance(module, fast)]
    for name in holders:
        prefix = f"{name}." if name else ""
        found |= {prefix + child for child, _ in model.get_submodule(name).named_children()}
    return found


def describe_layers(model: nn.Module) -> Iterator[str]:
    """One line per kind of layer that has a fast class: how many were replaced, and why others were not."""
    for plain, fast in REGISTRY.items():
        modules = list(model.modules())
        replaced = sum(isinstance(module, cast(type, fast)) for module in modules)
        reasons = Counter(fast.can_replace(module) or "not prepared" for module in modules if type(module) is plain)
        total = replaced + sum(reasons.values())
        if total:
            kept = "".join(f"; {count} not: {reason}" for reason, count in reasons.items())
            yield f"{plain.__name__} -> {fast.__name__}: {replaced} of {total}{kept}"
