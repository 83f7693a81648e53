"""Classifier-free guidance, as a wrapper: the sampler never sees it."""

import torch
from torch import Tensor

from latentdiff.samplers import Denoiser


def guide(denoiser: Denoiser, guidance_scale: float, low: float = 0.0, high: float = float("inf")) -> Denoiser:
    """Push away from the unconditional answer: u + s * (c - u) (Ho & Salimans 2022, eq. 6, with s = 1 + w).

    `denoiser` takes a batch of 2B and answers the first half without the prompt, the second half with it. At timesteps
    below `low` or above `high` it is asked for the B with the prompt alone (Kynkaanniemi et al. 2024, sec. 3).
    """

    def guided(latents: Tensor, timestep: float) -> Tensor:
        if not low <= timestep <= high:
            return denoiser(latents, timestep)
        unconditional, conditional = denoiser(torch.cat([latents, latents]), timestep).chunk(2)
        return torch.lerp(unconditional, conditional, guidance_scale)

    return guided
