"""Group norms over a whole image that is processed in tiles, so that colours do not change from tile to tile."""

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.models.layers import GroupNormSiLU


class Gathering:
    """Mixed into the class of a norm: gathers the means and variances of tiles [1, C, h, w], each normalised alone."""

    num_groups: int
    tiles: list[tuple[int, Tensor, Tensor]]  # pixels; mean and variance of each group, float32 [groups]

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Tensor:
        groups = x.unflatten(1, (self.num_groups, -1)).float()
        variance, mean = torch.var_mean(groups, dim=(0, 2, 3, 4), correction=0)
        self.tiles.append((x.shape[-2] * x.shape[-1], mean, variance))
        normalised: Tensor = super().forward(x, *others, **options)  # type: ignore[misc]
        return normalised

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of all tiles together, float32 [groups]."""
        pixels, means, variances = zip(*self.tiles, strict=True)
        shares = torch.tensor(pixels, device=means[0].device)[:, None] / sum(pixels)
        mean = (shares * torch.stack(means)).sum(0)
        within = (shares * torch.stack(variances)).sum(0)
        between = (shares * (torch.stack(means) - mean).square()).sum(0)
        return mean, within + between


class Fixed:
    """Mixed into the class of a norm: normalises with given statistics, float32 [groups]."""

    weight: Tensor
    bias: Tensor
    eps: float
    mean: Tensor
    variance: Tensor

    def forward(self, x: Tensor, shift: None = None, spare: bool = False) -> Tensor:
        channels = len(self.weight) // len(self.mean)
        scale = self.weight.float() * (self.variance + self.eps).rsqrt().repeat_interleave(channels)
        offset = self.bias.float() - self.mean.repeat_interleave(channels) * scale
        y = torch.addcmul(offset[:, None, None], x, scale[:, None, None])  # float32
        return (F.silu(y, inplace=True) if isinstance(self, GroupNormSiLU) else y).to(x.dtype)


def with_norms_of_all_tiles(model: nn.Module, process: Callable[[Any], Any]) -> nn.Module:
    """A copy of the model whose norms use the statistics of a whole image; it shares the weights.

    process: runs the module it gets on all tiles of the image, without overlaps. In that pass each tile is normalised
    on its own, so the statistics are approximate.
    """
    gathering: list[Any] = []

    def gather(norm: nn.Module) -> nn.Module:
        gathering.append(_mixed(norm, Gathering, tiles=[]))
        return gathering[-1]

    copied = _with_norms(model, gather)
    if not gathering:
        return model
    process(copied)
    norms = iter(gathering)

    def fix(norm: nn.Module) -> nn.Module:
        gathered = next(norms)
        if not gathered.tiles:
            return norm
        mean, variance = gathered.statistics()
        return _mixed(norm, Fixed, mean=mean, variance=variance)

    return _with_norms(model, fix)


def _with_norms(model: nn.Module, replace: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of the tree of modules with other norms."""
    if isinstance(model, nn.GroupNorm):
        return replace(model)
    copied = _copy(model)
    vars(copied)["_modules"] = {
        name: None if child is None else _with_norms(child, replace) for name, child in model._modules.items()
    }
    return copied


def _mixed(norm: nn.Module, mixin: type, **values: Any) -> nn.Module:
    """A copy of the norm with a class derived from `mixin` and its own."""
    copied: Any = _copy(norm)
    copied.__class__ = type(mixin.__name__, (mixin, type(norm)), {})
    vars(copied).update(values)
    return copied


def _copy(module: nn.Module) -> nn.Module:
    """A copy of one module with the same parameters and hooks; a `forward` of its own (disk offload) is bound to it.

    Another one, which is compiled, would run the original's norms, and is dropped.
    """
    copied = copy.copy(module)
    own = vars(copied).pop("forward", None)
    if isinstance(own, MethodType):
        vars(copied)["forward"] = MethodType(own.__func__, copied)
    return copied
