"""Random numbers for training, seeded by draw rather than by process or batch.

Noise therefore does not depend on the number of processes or micro-batches, or on interruptions.
"""

import numpy as np
import torch
from torch import Tensor

from latentdiff.device_transfer import send

GOLDEN = 0.6180339887498949


class Draws:
    """One random stream per draw of a batch: Philox (Salmon et al. 2011) keyed by the run's seed and the draw.

    numbers: indices of the draws, int64 [B] on the CPU. (torch's CPU generator uses only 32 bits of a seed.)
    """

    def __init__(self, seed: int, numbers: Tensor) -> None:
        self.numbers = numbers
        keys = [np.array([seed, number], dtype=np.uint64) for number in self.numbers.tolist()]
        self.streams = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers with the shape, dtype and device of `like` [B, ...]."""
        drawn = [stream.standard_normal(like.shape[1:], dtype=np.float32) for stream in self.streams]
        return send(torch.from_numpy(np.stack(drawn)), like.device).to(like.dtype)

    def uniform(self) -> Tensor:
        """[B] in [0, 1), on the CPU."""
        return torch.tensor([stream.random() for stream in self.streams])

    def timesteps(self, total: int, power: float) -> Tensor:
        """Integer timesteps [B] below `total`, on the CPU, with a density proportional to t ** (power - 1).

        They are multiples of the golden ratio modulo 1, which are evenly spaced in any range of draws and reduce the
        variance of the loss like the low-discrepancy sampler of Kingma et al. (2021, I.1).
        """
        quantiles = (self.numbers.double() * GOLDEN) % 1
        return (quantiles ** (1 / power) * total).long().clamp_(max=total - 1)
