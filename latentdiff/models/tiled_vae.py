"""Encode and decode large images with a VAE in overlapping tiles, and blend the seams."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 1024 * 1024  # pixels
TILE, OVERLAP = 768, 128  # pixels along each side


@dataclass(frozen=True)
class Cut:
    """A tile along one side: the latents to decode, the pixels to use, and their weights.

    kept: range of pixels in the picture. inner: the same pixels within the tile. weights: [kept], 1 except at seams.
    """

    latents: slice
    kept: slice
    inner: slice
    weights: Tensor


def decode_parts(decode: Callable[[Tensor], Tensor], z: Tensor, factor: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Decode z [B, C, h, w] in batches of up to `AT_ONCE` pixels, and larger pictures in tiles.

    factor: pixels per latent. Yields slices of pictures and rows, and their pixels as float32 [b, 3, rows, W], which
    may be modified.
    """
    height, width = factor * z.shape[-2], factor * z.shape[-1]
    if height * width <= AT_ONCE:
        count = AT_ONCE // (height * width)
        for k in range(0, len(z), count):
            yield slice(k, k + count), slice(0, height), decode(z[k : k + count]).float()
        return
    rows, columns = (cuts(side, TILE // factor, OVERLAP // factor, factor) for side in z.shape[-2:])
    for k in range(len(z)):
        start = 0
        for strip in _strips(decode, z[k : k + 1], rows, columns):
            yield slice(k, k + 1), slice(start, start + strip.shape[-2]), strip
            start += strip.shape[-2]


def encode_tiled(encode: Callable[[Tensor], Tensor], pixels: Tensor, factor: int) -> Tensor:
    """Encode pixels [B, 3, H, W] to latents [B, C, h, w], image by image, and images over `AT_ONCE` pixels in tiles."""
    height, width = pixels.shape[-2:]
    if height * width <= AT_ONCE:
        return torch.cat([encode(image[None]) for image in pixels])
    rows, columns = (cuts(side // factor, TILE // factor, OVERLAP // factor, 1) for side in (height, width))
    strips = (_strips(encode, image[None], rows, columns, factor) for image in pixels)
    return torch.cat([torch.cat(list(strip), dim=-2) for strip in strips])


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
