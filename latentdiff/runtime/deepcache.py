"""Deep features kept between steps: DeepCache (Ma et al. 2024, arXiv 2312.00858, sec. 3.2)."""

import torch
from torch import Tensor

from latentdiff.models.unet import AddedCond, UNet2DConditionModel

EVERY = 2


class DeepCacheUNet:
    """A U-Net for the steps of one run, in their order; its deep features change little from one to the next.

    Every `every`-th call computes all levels; those between only the outermost, around what the others gave last. A
    batch of another size computes all of them too: guidance that begins or ends doubles or halves it.
    """

    def __init__(self, unet: UNet2DConditionModel, every: int) -> None:
        self.unet, self.every = unet, every
        self.kept: Tensor | None = None
        self.age = 0

    def __call__(
        self, sample: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, added_cond: AddedCond | None = None
    ) -> Tensor:
        out: Tensor = self.unet(sample, timesteps, encoder_hidden_states, added_cond, self._inner)
        return out

    def _inner(self, x: Tensor, temb: Tensor, context: Tensor, size: torch.Size) -> Tensor:
        if self.kept is None or len(self.kept) != len(x) or self.age == self.every:
            self.kept, self.age = self.unet.inner(x, temb, context, size), 0
        self.age += 1
        return self.kept
