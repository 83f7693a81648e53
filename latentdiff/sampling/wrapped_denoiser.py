"""Wrap a denoiser to evaluate large latents in tiles, or latents with periodic borders for seamless images."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from latentdiff.errors import InputError
from latentdiff.models.tiled_decode import cuts
from latentdiff.sampling.loop import Denoiser, Levels

OVERLAP = 4  # neighbouring tiles overlap by 1 / OVERLAP of their side
MARGIN = 16  # latents of padding on each side

AXES = {"x": 3, "y": 2}


def in_tiles(denoiser: Denoiser, side: int) -> Denoiser:
    """Evaluate overlapping tiles of `side` latents, and blend x0 (MultiDiffusion, Bar-Tal et al. 2023, eq. 5).

    Needs the memory of one tile. Latents that fit into one tile are evaluated directly.
    """

    def tiled(latents: Tensor, levels: Levels) -> Tensor:
        if max(latents.shape[-2:]) <= side:
            return denoiser(latents, levels)
        rows, columns = (cuts(length, side, side // OVERLAP, 1) for length in latents.shape[-2:])
        x0 = torch.zeros_like(latents)
        for row in rows:
            for column in columns:
                part = denoiser(latents[..., row.latents, column.latents].contiguous(), levels)
                weights = (row.weights[:, None] * column.weights).to(part)
                x0[..., row.kept, column.kept] += part[..., row.inner, column.inner] * weights
        return x0

    return tiled


def wrapped_around(denoiser: Denoiser, axes: str) -> Denoiser:
    """Evaluate latents padded with the opposite side along the given axes, so that opposite edges match."""

    def wrapped(latents: Tensor, levels: Levels) -> Tensor:
        padded = continue_around(latents, axes)
        return crop_to(denoiser(padded, levels), latents.shape[-2:], axes, 1)

    return wrapped if axes else denoiser


def parse_axes(value: str) -> str:
    """Parse `x`, `y` or `x,y` to axes. Raises InputError."""
    axes = [axis.strip() for axis in value.split(",") if axis.strip()]
    if not set(axes) <= set(AXES):
        raise InputError(f"seamless={value!r} must be x, y or x,y")
    return "".join(sorted(set(axes)))


def continue_around(latents: Tensor, axes: str) -> Tensor:
    """Pad [B, C, h, w] along each axis with up to `MARGIN` latents of the opposite side."""
    for axis in axes:
        margin = _margin(latents.shape[AXES[axis]])
        pad = (margin, margin, 0, 0) if axis == "x" else (0, 0, margin, margin)
        latents = F.pad(latents, pad, mode="circular")
    return latents


def crop_to(image: Tensor, size: Sequence[int], axes: str, factor: int) -> Tensor:
    """Remove the padding of `continue_around`. size: of the latents; factor: pixels per latent."""
    height, width = size
    top, left = (factor * _margin(length) if axis in axes else 0 for axis, length in (("y", height), ("x", width)))
    return image[..., top : top + factor * height, left : left + factor * width]


def _margin(length: int) -> int:
    return min(MARGIN, length)
