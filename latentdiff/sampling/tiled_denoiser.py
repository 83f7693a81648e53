"""Evaluate a denoiser on large latents in overlapping tiles, and blend the predictions (MultiDiffusion)."""

import torch
from torch import Tensor

from latentdiff.device_transfer import send
from latentdiff.models.tiled_vae import cuts
from latentdiff.sampling.loop import Denoiser, Levels

OVERLAP = 4  # neighbouring tiles overlap by 1 / OVERLAP of their side


def in_tiles(denoiser: Denoiser, side: int) -> Denoiser:
    """Evaluate overlapping tiles of `side` latents, and blend x0 (MultiDiffusion, Bar-Tal et al. 2023, eq. 5).

    The memory needed is that of one tile. Latents that fit into one tile are evaluated directly.
    """

    def tiled(latents: Tensor, levels: Levels) -> Tensor:
        if max(latents.shape[-2:]) <= side:
            return denoiser(latents, levels)
        rows, columns = (cuts(length, side, side // OVERLAP, 1) for length in latents.shape[-2:])
        x0 = torch.zeros_like(latents)
        for row in rows:
            for column in columns:
                part = denoiser(latents[..., row.latents, column.latents].contiguous(), levels)
                weights = send((row.weights[:, None] * column.weights).to(part.dtype), part.device)
                x0[..., row.kept, column.kept] += part[..., row.inner, column.inner] * weights
        return x0

    return tiled
