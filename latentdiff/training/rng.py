"""Random numbers of a training step, seeded by the number of the draw, not by process or batch.

One process and many, a batch and its micro-batches, and a resumed run therefore get the same noise.
"""

import numpy as np
import torch
from torch import Tensor

from latentdiff.training.devices import send

GOLDEN = 0.6180339887498949


class Draws:
    """A stream for each draw of a batch, by Philox (Salmon et al. 2011) with the run's seed and the draw as its key.

    numbers: which draws these are, int64 [B] on the CPU. (torch's own CPU generator reads 32 bits of a seed.)
    """

    def __init__(self, seed: int, numbers: Tensor) -> None:
        self.numbers = numbers
        keys = [np.array([seed, number], dtype=np.uint64) for number in self.numbers.tolist()]
        self.streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, dtype and device of `like` [B, ...]."""
        drawn = [stream.standard_normal(like.shape[1:], dtype=np.float32) for stream in self.streams]
        return send(torch.from_numpy(np.stack(drawn)), like.device).to(like.dtype)

    def uniform(self) -> Tensor:
        """[B] in [0, 1), on the CPU."""
        return torch.tensor([stream.random() for stream in self.streams])

    def timesteps(self, total: int, power: float) -> Tensor:
        """Whole timesteps [B] below `total`, on the CPU, with a density that grows like t ** (power - 1).

        Multiples of the golden ratio, modulo 1, are spread evenly wherever a batch begins or ends, which quiets the
        loss as the low-discrepancy sampler of Kingma et al. (2021, I.1) does.
        """
        quantiles = (self.numbers.double() * GOLDEN) % 1
        return (quantiles ** (1 / power) * total).long().clamp_(max=total - 1)
