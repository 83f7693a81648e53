"""Add the random numbers of a denoiser's training step to a batch, in the process that loads it."""

from dataclasses import dataclass
from typing import Any

from torch.utils.data import default_collate

from latentdiff.config.train import DenoiserConfig
from latentdiff.training.rng import Draws


@dataclass(frozen=True)
class NoisyBatch:
    """Collates items of latents, and draws noise, timesteps and dropped captions.

    The loader's workers call it, so that a GPU does not wait for random numbers, which are generated on the CPU.
    total: number of timesteps of the schedule.
    """

    config: DenoiserConfig
    total: int

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch, with `posterior_noise`, `noise` [B, C, h, w] and `timesteps` [B]; dropped captions are empty."""
        batch: dict[str, Any] = default_collate(items)
        mean, draws = batch["mean"], Draws(self.config.run.seed, batch.pop("draw"))
        batch["posterior_noise"] = draws.normal(mean)
        batch["noise"] = draws.normal(mean) + self.config.noise_offset * draws.normal(mean[:, :, :1, :1])
        batch["timesteps"] = draws.timesteps(self.total, self.config.timestep_power)
        dropped = draws.uniform() < self.config.caption_dropout
        batch["caption"] = ["" if drop else caption for drop, caption in zip(dropped, batch["caption"], strict=True)]
        return batch
