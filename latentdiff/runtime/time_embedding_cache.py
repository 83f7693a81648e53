"""What a U-Net makes of a timestep: one product for all residual blocks, and kept, since no latents enter into it."""

from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.models.layers import ResnetBlock2D
from latentdiff.models.unet import AddedCond, UNet2DConditionModel
from latentdiff.runtime.packed import frozen_linear

KEPT = 64  # timesteps: those of a run or two; a row is 5 kB for the bundled model, 40 kB for Stable Diffusion's


class KeptTimeUNet(UNet2DConditionModel):
    """Hands its residual blocks the projections of them all, [B, total], in place of the embedding."""

    projections: nn.Linear
    kept: dict[tuple[bytes, ...], Tensor]

    def embed_time(self, timesteps: Tensor, added_cond: AddedCond | None) -> Tensor:
        given = (timesteps,) if added_cond is None else (timesteps, added_cond.text_embeds, added_cond.time_ids)
        key = tuple(t.detach().double().numpy().tobytes() for t in given)
        projected = self.kept.get(key)
        if projected is None:
            projected = self.projections(super().embed_time(timesteps, added_cond))
            for oldest in list(self.kept)[: 1 - KEPT]:
                self.kept.pop(oldest, None)
            self.kept[key] = projected
        return projected


class TimeSlice(nn.Module):
    """A residual block's own part of the projections. [B, total] -> [B, width]."""

    def __init__(self, first: int, width: int) -> None:
        super().__init__()
        self.first, self.width = first, width

    def forward(self, projected: Tensor) -> Tensor:
        return projected.narrow(1, self.first, self.width)


def keep_time(model: nn.Module) -> None:
    """Make a plain U-Net a `KeptTimeUNet`, in place; any other model stays as it is."""
    if type(model) is not UNet2DConditionModel:
        return
    blocks = _blocks(model)
    layers = [block.time_emb_proj for block in blocks if type(block.time_emb_proj) is nn.Linear]
    if len(layers) < len(blocks):  # with a LoRA around them
        return
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    first = 0
    for block, layer in zip(blocks, layers, strict=True):
        block.time_emb_proj = TimeSlice(first, layer.out_features)
        first += layer.out_features
    unet: Any = model
    unet.__class__ = KeptTimeUNet
    unet.projections, unet.kept = frozen_linear(weight, bias), {}


def restore_time(model: nn.Module) -> None:
    """The projections where files have them, to the bit."""
    if not isinstance(model, KeptTimeUNet):
        return
    weight, bias = model.projections.weight, model.projections.bias
    for block in _blocks(model):
        cut = block.time_emb_proj
        block.time_emb_proj = frozen_linear(cut(weight.T).T.clone(), cut(bias[None])[0].clone())
    del model.projections, model.kept
    model.__class__ = UNet2DConditionModel  # type: ignore[assignment]


def _blocks(unet: UNet2DConditionModel) -> list[Any]:
    return [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
