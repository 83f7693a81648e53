"""Variations of an image: its initial noise, interpolated with the noise of other seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff.errors import InputError, check_number
from latentdiff.sampling.interpolation import slerp
from latentdiff.sampling.seeds import draw_noise, generator_for, seeds_per_image


@dataclass(frozen=True)
class Variation:
    """Noise to mix into the initial noise.

    seeds: of this noise, one per image. strength: from 0, the same image, to 1, a different one.
    """

    seeds: list[int]
    strength: float

    def mix(self, noise: Tensor) -> Tensor:
        """Interpolate noise [B, C, h, w] with the noise of the seeds, row by row."""
        others = draw_noise([generator_for(seed) for seed in self.seeds], noise.shape[1:], noise)
        return torch.stack([slerp(one, other, self.strength) for one, other in zip(noise, others, strict=True)])


def read_variation(
    seed: int | Sequence[int] | None, strength: float | None, count: int, latents: Tensor | None
) -> Variation | None:
    """Validate a variation; None if there is none. Image k uses seed + k, or random seeds. Raises InputError."""
    if strength is None:
        if seed is not None:
            raise InputError(f"variation_seed={seed} requires variation_strength= (--variation-strength); try 0.1")
        return None
    if not 0 <= check_number(strength, "variation_strength") <= 1:
        raise InputError(f"variation_strength={strength} must be from 0 (the same image) to 1 (another image); try 0.1")
    if latents is not None:
        raise InputError("variation_strength= applies to noise drawn from seeds; omit it or latents=")
    return Variation(seeds_per_image(seed, count, "variation_seed"), float(strength))
