"""Cache the time projections of a U-Net, which are independent of the latents, and compute them in one product."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.models.conditioning import Conditioning
from latentdiff.models.layers import ResnetBlock2D
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime.packed import cannot_pack, frozen_linear

KEPT = 256  # timesteps; a row has 5 kB for the bundled model, 40 kB for Stable Diffusion


class TimeEmbeddingCache(UNet2DConditionModel):
    """A U-Net that passes the projections for all residual blocks, [B, total], to them instead of the embedding.

    Each timestep (for SDXL with text and sizes) is computed separately, so that it does not depend on the batch.
    """

    projections: nn.Linear
    kept: dict[Hashable, Tensor]

    @classmethod
    def can_replace(cls, unet: nn.Module) -> str:
        layers = [block.time_emb_proj for block in _blocks(unet)]
        if any(type(layer) is not nn.Linear for layer in layers):
            return "its time projections are not plain linear layers"
        return cannot_pack(layers[0].weight)

    @classmethod
    def install(cls, unet: nn.Module) -> None:
        layers = [block.time_emb_proj for block in _blocks(unet)]
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        first = 0
        for block, layer in zip(_blocks(unet), layers, strict=True):
            block.time_emb_proj = TimeSlice(first, layer.out_features)
            first += layer.out_features
        fast: Any = unet
        fast.__class__ = cls
        fast.projections, fast.kept = frozen_linear(weight, bias), {}

    def remove(self) -> None:
        weight, bias = self.projections.weight, self.projections.bias
        for block in _blocks(self):
            cut = block.time_emb_proj
            block.time_emb_proj = frozen_linear(cut(weight.T).T.clone(), cut(bias[None])[0].clone())
        del self.projections, self.kept
        self.__class__ = UNet2DConditionModel  # type: ignore[assignment]

    def embed_time(self, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """[B, total], or [1, total] if all rows are equal."""
        times = timesteps.tolist()
        if self.add_embedding is None:
            rows = [self._projected(time, conditioning, 0, time) for time in times]
        else:
            times = times * len(conditioning) if len(times) == 1 else times
            keys = zip(times, conditioning.keys, strict=True)
            rows = [self._projected(time, conditioning, k, (time, key)) for k, (time, key) in enumerate(keys)]
        return rows[0] if all(row is rows[0] for row in rows) else torch.cat(rows)

    def _projected(self, time: float, conditioning: Conditioning, k: int, key: Hashable) -> Tensor:
        row = self.kept.pop(key, None)
        if row is None:
            timestep = torch.tensor([time], device=self.conv_in.weight.device)
            row = self.projections(super().embed_time(timestep, conditioning[k : k + 1]))
            for oldest in list(self.kept)[: 1 - KEPT]:
                self.kept.pop(oldest, None)
        self.kept[key] = row
        return row


class TimeSlice(nn.Module):
    """The slice of the projections for one residual block. [B, total] -> [B, width]."""

    def __init__(self, first: int, width: int) -> None:
        super().__init__()
        self.first, self.width = first, width

    def forward(self, projected: Tensor) -> Tensor:
        return projected.narrow(1, self.first, self.width)


def _blocks(unet: nn.Module) -> list[Any]:
    return [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
