"""Group norms over a whole image that is processed in tiles, so that colours do not change from tile to tile."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.models.layers import GroupNormSiLU


class GatheringNorm(nn.Module):
    """Normalises each tile [1, C, h, w] on its own, and gathers the means and variances of the tiles."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.tiles: list[tuple[int, Tensor, Tensor]] = []  # pixels; mean and variance of each group, float32 [groups]

    def forward(self, x: Tensor, shift: None = None, spare: bool = False) -> Tensor:
        groups = x.unflatten(1, (self.norm.num_groups, -1)).float()
        variance, mean = torch.var_mean(groups, dim=(0, 2, 3, 4), correction=0)
        self.tiles.append((x.shape[-2] * x.shape[-1], mean, variance))
        normalised: Tensor = self.norm(x)
        return normalised

    def fixed(self) -> nn.Module:
        """The norm with the statistics of all tiles together; the plain norm if it was not used."""
        if not self.tiles:
            return self.norm
        pixels, means, variances = zip(*self.tiles, strict=True)
        shares = torch.tensor(pixels, device=means[0].device)[:, None] / sum(pixels)
        mean = (shares * torch.stack(means)).sum(0)
        within = (shares * torch.stack(variances)).sum(0)
        between = (shares * (torch.stack(means) - mean).square()).sum(0)
        return FixedNorm(self.norm, mean, within + between)


class FixedNorm(nn.Module):
    """A GroupNorm, or a GroupNormSiLU, with given statistics. mean, variance: float32 [groups]."""

    def __init__(self, norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        channels = norm.num_channels // norm.num_groups
        scale = norm.weight.float() * (variance + norm.eps).rsqrt().repeat_interleave(channels)
        offset = norm.bias.float() - mean.repeat_interleave(channels) * scale
        self.scale, self.offset = scale[:, None, None], offset[:, None, None]
        self.silu = isinstance(norm, GroupNormSiLU)

    def forward(self, x: Tensor, shift: None = None, spare: bool = False) -> Tensor:
        y = torch.addcmul(self.offset, x, self.scale)  # float32
        return (F.silu(y, inplace=True) if self.silu else y).to(x.dtype)


def with_norms_of_all_tiles(model: nn.Module, process: Callable[[Any], Any]) -> nn.Module:
    """A copy of the model whose norms use the statistics of a whole image; it shares the weights.

    process: runs the module it gets on all tiles of the image, without overlaps. In that pass each tile is normalised
    on its own, so the statistics are approximate.
    """
    gathering: list[GatheringNorm] = []

    def gather(norm: nn.GroupNorm) -> nn.Module:
        gathering.append(GatheringNorm(norm))
        return gathering[-1]

    copied = _with_norms(model, gather)
    if not gathering:
        return model
    process(copied)
    fixed = iter([norm.fixed() for norm in gathering])
    return _with_norms(model, lambda _: next(fixed))


def _with_norms(model: nn.Module, replace: Callable[[nn.GroupNorm], nn.Module]) -> nn.Module:
    """A copy of the tree of modules, with the same parameters and hooks, and with other norms."""
    copied = copy.copy(model)
    vars(copied).pop("forward", None)  # a compiled one contains the old norms
    vars(copied)["_modules"] = {
        name: replace(child) if isinstance(child, nn.GroupNorm) else child and _with_norms(child, replace)
        for name, child in model._modules.items()
    }
    return copied
