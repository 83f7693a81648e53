"""Self-attention among fewer tokens: token merging (Bolya & Hoffman 2023, arXiv 2303.17604).

One token of each 2x2 window is a destination. Of the others, half of all tokens, those most like a destination by the
cosine of what attention reads, are merged into it: the mean stands for all of them, counts once, and each gets a copy
of its answer. Destinations are drawn once for each size, not at each call as in the paper, so that a picture is the
same again. Only the largest maps that have attention are merged.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.models.attention import Transformer2DModel
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime.fused import FusedSelfAttention

RATIO = 0.5
AT_ONCE = 4096  # tokens whose cosines with all destinations are held
WIDTH: ContextVar[int] = ContextVar("WIDTH")  # of the map whose tokens this thread's blocks are given


def merge_tokens(unet: UNet2DConditionModel) -> None:
    """Let the largest maps of a prepared U-Net that have attention merge their tokens for it, in place."""
    for transformer in _of_largest_maps(unet):
        transformer.__class__ = MergingTransformer2DModel
        for block in transformer.transformer_blocks:
            if type(block.attn1) is FusedSelfAttention:
                block.attn1.__class__ = MergedSelfAttention


def unmerge(model: nn.Module) -> None:
    """The layers as `prepare` left them."""
    for module in model.modules():
        if isinstance(module, MergingTransformer2DModel):
            module.__class__ = Transformer2DModel  # type: ignore[assignment]
        if isinstance(module, MergedSelfAttention):
            module.__class__ = FusedSelfAttention  # type: ignore[assignment]


def _of_largest_maps(unet: UNet2DConditionModel) -> list[Any]:
    levels: Iterator[tuple[Any, Any]] = zip(unet.down_blocks, reversed(unet.up_blocks), strict=True)
    found = ([*(down.attentions or ()), *(up.attentions or ())] for down, up in levels)
    return next(filter(None, found), [*unet.mid_block.attentions])


class MergingTransformer2DModel(Transformer2DModel):
    """Tells its blocks how wide the map is."""

    def forward(self, x: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        WIDTH.set(x.shape[-1])
        return super().forward(x, encoder_hidden_states)


class MergedSelfAttention(FusedSelfAttention):
    ratio = RATIO

    def attend(self, x: Tensor, context: Tensor) -> Tensor:
        places, left = match(x, WIDTH.get(), self.ratio)
        merged = merge(x, places, left)
        return spread(super().attend(merged, merged), places)


def match(x: Tensor, width: int, ratio: float) -> tuple[Tensor, int]:
    """Where among the tokens that are left those of x [B, N, C], rows of `width`, go, [B, N]; and how many are left.

    At most `ratio` of N are merged; destinations come first.
    """
    batch, tokens, _ = x.shape
    to, others = _windows(tokens, width, x.device)
    gone = min(len(others), int(ratio * tokens))
    unit = F.normalize(x, dim=-1)
    ends = unit.index_select(1, to).mT
    found = [(unit.index_select(1, part) @ ends).max(-1) for part in others.split(AT_ONCE)]
    likeness, nearest = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    rank = likeness.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    places = torch.empty(batch, tokens, dtype=torch.long, device=x.device)
    places[:, to] = torch.arange(len(to), device=x.device)
    places[:, others] = torch.where(rank < gone, nearest, rank + len(to) - gone)
    return places, tokens - gone


def merge(x: Tensor, places: Tensor, left: int) -> Tensor:
    """Means of the tokens of x [B, N, C] that share a place of `left`: [B, left, C]."""
    rows, order = _rows(places, left).sort(stable=True)
    starts = torch.searchsorted(rows, torch.arange(len(x) * left, device=x.device))
    return F.embedding_bag(order, x.flatten(0, 1), starts, mode="mean").unflatten(0, (-1, left))


def spread(x: Tensor, places: Tensor) -> Tensor:
    """Of x [B, left, C] the token at each of places [B, N]: [B, N, C]."""
    return x.flatten(0, 1).index_select(0, _rows(places, x.shape[1])).unflatten(0, places.shape)


def _rows(places: Tensor, left: int) -> Tensor:
    first = torch.arange(0, len(places) * left, left, device=places.device)
    return (places + first[:, None]).flatten()


@lru_cache(maxsize=64)
def _windows(tokens: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The destinations, the same for each size, and the other tokens."""
    drawn = torch.rand(1, tokens // width, width, generator=torch.Generator().manual_seed(0))
    to = F.max_pool2d(drawn, 2, ceil_mode=True, return_indices=True)[1].flatten()
    others = torch.ones(tokens, dtype=torch.bool).index_fill_(0, to, False).nonzero()[:, 0]
    return to.to(device), others.to(device)
