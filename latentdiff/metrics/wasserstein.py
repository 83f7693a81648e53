"""Sliced Wasserstein distance over a Laplacian pyramid, which compares textures at each scale without a network."""

import torch
from torch import Tensor
from torch.nn import functional as F

from latentdiff.metrics.check_arguments import as_two

SMALLEST = 16
PATCH = 7
TAPS = (1.0, 4.0, 6.0, 4.0, 1.0)


def sliced_wasserstein(generated: Tensor, real: Tensor, directions: int = 512, seed: int = 0) -> float:
    """Mean over random directions of the 1-Wasserstein distance between points [N, D] and [M, D] projected on them.

    Rabin et al. 2011, "Wasserstein Barycenter and Its Application to Texture Mixing", section 2. Raises InputError,
    NonFiniteError.
    """
    first, second = as_two(generated, real)
    n, m = len(first), len(second)
    generator = torch.Generator().manual_seed(seed)
    onto = F.normalize(torch.randn(first.shape[1], directions, generator=generator, dtype=torch.float64), dim=0)
    projected = [(points @ onto).sort(0).values for points in (first, second)]
    # Between two of these steps, in units of 1 / (n m), both quantile functions are constant.
    steps = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique()
    lengths = steps.diff(prepend=steps.new_zeros(1)).double() / (n * m)
    distances = (projected[0][(steps - 1) // m] - projected[1][(steps - 1) // n]).abs()
    return float((lengths @ distances).mean())


def texture_distance(generated: Tensor, real: Tensor, directions: int = 512, seed: int = 0) -> float:
    """Sliced Wasserstein distance of patches [N, P, 3, 7, 7] and [M, P, 3, 7, 7] of one scale.

    Each colour of each set is first normalised to mean 0 and standard deviation 1, so brightness and contrast have no
    effect.
    Karras et al. 2018, "Progressive Growing of GANs", section 5 (there times 1000).
    """
    return sliced_wasserstein(_standard(generated), _standard(real), directions, seed)


def _standard(patches: Tensor) -> Tensor:
    flat = patches.flatten(0, 1)
    std, mean = torch.std_mean(flat, dim=(0, 2, 3), keepdim=True)
    return ((flat - mean) / std.clamp(min=1e-8)).flatten(1)


def draw_patches(pixels: Tensor, count: int, generator: torch.Generator) -> dict[int, Tensor]:
    """`count` 7x7 patches of each picture [B, 3, R, R] at random positions: scale -> [B, count, 3, 7, 7]."""
    return {level.shape[-1]: _patches(level, count, generator) for level in laplacian_pyramid(pixels.float())}


def laplacian_pyramid(pixels: Tensor) -> list[Tensor]:
    """Differences between each scale and the next coarser one, down to 16 pixels or an odd size, and the coarsest.

    Burt and Adelson 1983, "The Laplacian Pyramid as a Compact Image Code".
    """
    levels = []
    while pixels.shape[-1] % 2 == 0 and pixels.shape[-1] // 2 >= SMALLEST:
        coarser = _down(pixels)
        levels.append(pixels - upscale(coarser))
        pixels = coarser
    return [*levels, pixels]


def _filter(pixels: Tensor, gain: float) -> Tensor:
    taps = torch.tensor(TAPS, dtype=pixels.dtype) / sum(TAPS)
    kernel = (gain * taps[:, None] * taps[None]).expand(pixels.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(pixels, (2, 2, 2, 2), mode="reflect"), kernel, groups=pixels.shape[1])


def _down(pixels: Tensor) -> Tensor:
    return _filter(pixels, 1)[..., ::2, ::2]


def upscale(pixels: Tensor) -> Tensor:
    """Double the size: insert zeros between the pixels, then apply the same filter."""
    batch, channels, height, width = pixels.shape
    spread = pixels.new_zeros(batch, channels, 2 * height, 2 * width)
    spread[..., ::2, ::2] = pixels
    return _filter(spread, 4)


def _patches(level: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[B, C, R, R] -> [B, count, C, 7, 7]."""
    windows = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [B, C, R - 6, R - 6, 7, 7]
    places = torch.randint(windows.shape[2], (2, len(level), count), generator=generator)
    return windows.permute(0, 2, 3, 1, 4, 5)[torch.arange(len(level))[:, None], places[0], places[1]]
