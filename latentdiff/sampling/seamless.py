"""Seamless images: evaluate a denoiser on latents with periodic borders, so that opposite edges match."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from latentdiff.errors import InputError
from latentdiff.sampling.loop import Denoiser, Levels

MARGIN = 16  # latents of padding on each side

AXES = {"x": 3, "y": 2}


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
