"""Encode images to latents and decode latents to images: in tiles if large, checked to be finite, edits pasted back."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from latentdiff.errors import NonFiniteError
from latentdiff.images.edit import Canvas
from latentdiff.images.reading import to_tensor
from latentdiff.models.tiled_vae import decode_parts, encode_tiled
from latentdiff.models.vae import VAE
from latentdiff.sampling.seamless import continue_around, crop_to

OutputType = Literal["pil", "np", "pt", "latent"]


def encode_pixels(vae: VAE, pixels: Tensor, tile: int | None = None) -> Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] to the mean of their latents, float32 [B, C, h, w]; unscaled.

    tile: as in `tiled_vae.tiling`. Raises NonFiniteError.
    """
    weight = next(vae.parameters())
    z = encode_tiled(vae, _mean, pixels.to(weight), vae.config.downscale, tile)
    if not torch.isfinite(z).all():
        raise NonFiniteError(f"the VAE's latents are not finite in {weight.dtype}; use dtype='float32'")
    return z


def _mean(vae: Any, pixels: Tensor) -> Tensor:
    with torch.autocast(pixels.device.type, enabled=False):
        mean: Tensor = vae.encode(pixels).mean
        return mean.float()


def _decode(vae: Any, z: Tensor) -> Tensor:
    with torch.autocast(z.device.type, enabled=False):  # some decoders overflow in half precision
        pixels: Tensor = vae.decode(z)
        return pixels


def decode_latents(
    vae: VAE,
    latents: Tensor,
    convert: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    tile: int | None = None,
) -> Tensor:
    """Decode scaled latents [B, C, h, w] and apply `convert` to the pixels [B, 3, H, W], one part at a time.

    convert: a function of float32 pixels in [-1, 1], which it may modify in place. tile: as in
    `tiled_vae.tiling`. Raises NonFiniteError.
    """
    dtype = next(vae.parameters()).dtype
    z, factor = (latents / vae.config.scaling_factor).to(dtype), vae.config.downscale
    made: Tensor | None = None
    for images, rows, pixels in decode_parts(vae, _decode, z, factor, tile):
        if not torch.isfinite(pixels).all():
            raise NonFiniteError(f"the VAE's pixels are not finite in {dtype}; use dtype='float32'")
        part = convert(pixels.clamp_(-1, 1))
        if made is None:
            made = part.new_empty(len(z), part.shape[1], factor * z.shape[-2], factor * z.shape[-1])
        made[images, :, rows] = part
    assert made is not None
    return made


def to_output(
    vae: VAE,
    latents: Tensor,
    output_type: OutputType,
    canvases: Sequence[Canvas] | None,
    seamless: str = "",
    tile: int | None = None,
) -> Any:
    """Decode latents [B, C, h, w] to `PipelineOutput.images`; edited images are pasted back with 8 bits per channel.

    seamless: axes along which latents are padded with the opposite side before decoding. tile: as in `decode_latents`.
    """
    if output_type == "latent":
        return latents
    if canvases is not None and all(canvas.mask is None for canvas in canvases):
        canvases = None  # there is nothing to paste back
    if canvases is None and output_type != "pil":
        pixels = _decode_around(vae, latents, _unit, seamless, tile)
        return pixels if output_type == "pt" else pixels.permute(0, 2, 3, 1).cpu().numpy()
    arrays = _decode_around(vae, latents, _bytes, seamless, tile).permute(0, 2, 3, 1).cpu().numpy()
    images = [Image.fromarray(array) for array in arrays]
    if canvases is None:
        return images
    images = [canvas.paste(image) for canvas, image in zip(canvases, images, strict=True)]
    if output_type == "pil":
        return images
    pasted = torch.stack([to_tensor(image) for image in images])
    return pasted if output_type == "pt" else pasted.permute(0, 2, 3, 1).numpy()


def _decode_around(
    vae: VAE, latents: Tensor, convert: Callable[[Tensor], Tensor], axes: str, tile: int | None
) -> Tensor:
    if not axes:
        return decode_latents(vae, latents, convert, tile)
    pixels = decode_latents(vae, continue_around(latents, axes), convert, tile)
    return crop_to(pixels, latents.shape[-2:], axes, vae.config.downscale).contiguous()


def _unit(pixels: Tensor) -> Tensor:
    return pixels.div_(2).add_(0.5).clamp_(0, 1)


def _bytes(pixels: Tensor) -> Tensor:
    return _unit(pixels).mul_(255).round_().to(torch.uint8)
