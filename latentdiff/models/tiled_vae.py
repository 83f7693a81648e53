"""Encode and decode large images with a VAE in overlapping tiles, and blend the seams."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.models.tile_norms import with_norms_of_all_tiles

AT_ONCE = 1024 * 1024  # pixels
TILE, OVERLAP = 512, 64  # pixels along each side

Process = Callable[[Any, Tensor], Tensor]  # a VAE or a copy of it, and latents or pixels


@dataclass(frozen=True)
class Cut:
    """A tile along one side: the latents to decode, the pixels to use, and their weights.

    kept: range of pixels in the picture. inner: the same pixels within the tile. weights: [kept], 1 except at seams.
    """

    latents: slice
    kept: slice
    inner: slice
    weights: Tensor


def tiling(tile: int | None, factor: int) -> tuple[int, int]:
    """The pixels of the largest picture that is processed as a whole, and the side of the tiles of others in latents.

    tile: side of the U-Net's tiles in latents, None without. factor: pixels per latent.
    """
    if tile is None:
        return AT_ONCE, TILE // factor
    side = max(tile, TILE // factor)
    return (factor * side) ** 2, side


def decode_parts(
    vae: nn.Module, decode: Process, z: Tensor, factor: int, tile: int | None = None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Decode z [B, C, h, w] in batches of up to `AT_ONCE` pixels, and larger pictures in tiles.

    factor: pixels per latent. tile: as in `tiling`. Yields slices of pictures and rows, and their pixels as
    float32 [b, 3, rows, W], which may be modified.
    """
    height, width = factor * z.shape[-2], factor * z.shape[-1]
    most, side = tiling(tile, factor)
    if height * width <= most:
        count = most // (height * width)
        for k in range(0, len(z), count):
            yield slice(k, k + count), slice(0, height), decode(vae, z[k : k + count]).float()
        return
    for k in range(len(z)):
        start = 0
        for strip in _in_tiles(vae, decode, z[k : k + 1], side, factor, 1):
            yield slice(k, k + 1), slice(start, start + strip.shape[-2]), strip
            start += strip.shape[-2]


def encode_tiled(vae: nn.Module, encode: Process, pixels: Tensor, factor: int, tile: int | None = None) -> Tensor:
    """Encode pixels [B, 3, H, W] to latents [B, C, h, w], image by image, and larger images in tiles."""
    height, width = pixels.shape[-2:]
    most, side = tiling(tile, factor)
    if height * width <= most:
        return torch.cat([encode(vae, image[None]) for image in pixels])
    strips = (_in_tiles(vae, encode, image[None], side, factor, factor) for image in pixels)
    return torch.cat([torch.cat(list(strip), dim=-2) for strip in strips])


def _in_tiles(vae: nn.Module, process: Process, x: Tensor, tile: int, factor: int, scale: int) -> Iterator[Tensor]:
    """The strips of one image or its latents x; the norms of all tiles use the statistics of the whole image.

    tile: side in latents. factor: pixels per latent. scale: elements of x per latent along each side: 1, or
    `factor` if x contains pixels.
    """

    def without_overlaps(module: nn.Module) -> None:
        for band in _split(x, -2, tile, scale):
            for part in _split(band, -1, tile, scale):
                process(module, part.contiguous())

    module = with_norms_of_all_tiles(vae, without_overlaps)
    rows, columns = (cuts(side // scale, tile, OVERLAP // factor, factor // scale) for side in x.shape[-2:])
    return _strips(lambda part: process(module, part), x, rows, columns, scale)


def _split(x: Tensor, dim: int, tile: int, scale: int) -> Sequence[Tensor]:
    """Parts of about equal length, of at most `tile` latents."""
    length = x.shape[dim] // scale
    count = math.ceil(length / tile)
    return x.tensor_split([scale * round(k * length / count) for k in range(1, count)], dim)


def cuts(length: int, tile: int, overlap: int, factor: int) -> list[Cut]:
    """Evenly spaced tiles of one size over a side of `length` latents; tile and overlap are in latents too.

    In the middle of an overlap, the weight of one tile decreases linearly while that of the other increases. The edges
    of a tile, which depend on its padding, have weight 0. The weights of a pixel sum to 1.
    """
    size = min(tile, length)
    count = math.ceil((length - overlap) / (tile - overlap)) if length > tile else 1
    starts = [round(k * (length - size) / max(count - 1, 1)) for k in range(count)]
    pixels = torch.arange(factor * length) + 0.5
    seams = [factor * (first + size + second) / 2 for first, second in zip(starts, starts[1:], strict=False)]
    slopes = [((pixels - seam) / (factor * overlap / 2) + 0.5).clamp(0, 1) for seam in seams]
    slopes = [torch.ones_like(pixels), *slopes, torch.zeros_like(pixels)]
    return [_cut(start, size, factor, slopes[k] - slopes[k + 1]) for k, start in enumerate(starts)]


def _cut(start: int, size: int, factor: int, weights: Tensor) -> Cut:
    first, *_, last = weights.nonzero().flatten().tolist()
    inner = slice(first - factor * start, last + 1 - factor * start)
    return Cut(slice(start, start + size), slice(first, last + 1), inner, weights[first : last + 1])


def _strips(
    decode: Callable[[Tensor], Tensor], z: Tensor, rows: list[Cut], columns: list[Cut], scale: int = 1
) -> Iterator[Tensor]:
    """Yield finished rows of an image [1, C, rows, W] from top to bottom; one row of tiles is in memory as float32.

    scale: elements of z per latent along each side; 1 unless z contains pixels.
    """
    seam: Tensor | None = None  # the overlap with the tiles above
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        band = _band(decode, z[..., _scaled(row.latents, scale), :], row, columns, scale)
        if seam is not None:
            band[..., : seam.shape[-2], :] += seam
        done = (following.kept.start if following else row.kept.stop) - row.kept.start
        seam = band[..., done:, :].clone()
        yield band[..., :done, :]


def _band(decode: Callable[[Tensor], Tensor], z: Tensor, row: Cut, columns: list[Cut], scale: int) -> Tensor:
    """A row of tiles, multiplied by their weights."""
    band: Tensor | None = None
    for column in columns:
        tile = decode(z[..., _scaled(column.latents, scale)].contiguous())[..., row.inner, column.inner].float()
        if band is None:
            band = tile.new_zeros(*tile.shape[:-1], columns[-1].kept.stop)
        band[..., column.kept] += tile * column.weights.to(tile.device)
    assert band is not None
    return band.mul_(row.weights[:, None].to(band.device))


def _scaled(latents: slice, scale: int) -> slice:
    return slice(scale * latents.start, scale * latents.stop)
