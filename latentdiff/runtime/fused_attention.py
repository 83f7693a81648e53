"""Attention with fused projections and cached keys and values of prompts."""

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from latentdiff.models.attention import Attention
from latentdiff.models.conditioning import Conditioning
from latentdiff.runtime.native_layers import fast_attention
from latentdiff.runtime.packed import frozen_linear

KEPT = 32  # prompts; one needs 5 MB over all layers of Stable Diffusion 1.5


class FusedAttention(Attention):
    """Attention with some of its projections fused into one linear layer, `fused`, whose outputs are adjacent."""

    parts: tuple[str, ...]
    fused: nn.Linear

    @classmethod
    def can_replace(cls, attention: nn.Module) -> str:
        kind = _kind(attention)
        plain = all(type(getattr(attention, name, None)) is nn.Linear for name in kind.parts)
        return "" if plain else "its projections are not plain linear layers"

    @classmethod
    def install(cls, attention: nn.Module) -> None:
        kind = _kind(attention)
        fused = frozen_linear(torch.cat([getattr(attention, name).weight for name in kind.parts]))
        for name in kind.parts:
            delattr(attention, name)
        attention.__class__ = kind
        attention.fused = fused

    def remove(self) -> None:
        weights = self.fused.weight.chunk(len(self.parts))
        for name, weight in zip(self.parts, weights, strict=True):
            setattr(self, name, frozen_linear(weight.clone()))
        del self.fused
        self.__dict__.pop("kept", None)
        self.__dict__.pop("last", None)
        self.__class__ = Attention  # type: ignore[assignment]


class FusedSelfAttention(FusedAttention):
    parts = ("to_q", "to_k", "to_v")

    def attend(self, x: Tensor, conditioning: Conditioning | None) -> Tensor:
        q, k, v = self.fused(x).chunk(3, dim=-1)
        return fast_attention(q, k, v, self.heads)


class FusedCrossAttention(FusedAttention):
    """Keys and values are computed and cached one prompt at a time, so that they do not depend on the batch."""

    parts = ("to_k", "to_v")
    kept: dict[Hashable, Tensor]  # by the key of a row: [1, S, 2 * heads * head_dim]
    last: tuple[tuple[Hashable, ...], Tensor]  # those of the last batch

    def attend(self, x: Tensor, conditioning: Conditioning | None) -> Tensor:
        assert conditioning is not None
        k, v = self._keys_and_values(conditioning).chunk(2, dim=-1)
        return fast_attention(self.to_q(x), k, v, self.heads)

    def _keys_and_values(self, conditioning: Conditioning) -> Tensor:
        last = self.__dict__.get("last")
        if last is not None and last[0] == conditioning.keys:
            joined: Tensor = last[1]
            return joined
        kept: dict[Hashable, Tensor] = self.__dict__.setdefault("kept", {})
        rows = []
        for k, key in enumerate(conditioning.keys):
            row = kept.pop(key, None)
            kept[key] = row = self.fused(conditioning.hidden[k : k + 1]) if row is None else row
            rows.append(row)
        for oldest in list(kept)[:-KEPT]:
            kept.pop(oldest, None)
        joined = torch.cat(rows)
        self.last = (conditioning.keys, joined)
        return joined


def _kind(attention: nn.Module) -> type[FusedAttention]:
    return FusedCrossAttention if getattr(attention, "is_cross", False) else FusedSelfAttention
