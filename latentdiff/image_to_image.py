"""Rows that start from an input image: image to image, inpainting, and InstructPix2Pix."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentdiff.denoiser import Known, Row
from latentdiff.images.edit import Canvas
from latentdiff.images.masks import to_latent_mask
from latentdiff.inputs.model_limits import Task
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.vae import VAE
from latentdiff.sampling.seeds import draw_noise
from latentdiff.vae_codec import encode_pixels


@dataclass(frozen=True)
class Source:
    """An encoded input image. latents: [C, h, w], scaled. mask: [1, h, w], 1 where the image is repainted.

    channels: [E, h, w] that inpainting models and InstructPix2Pix read in addition to the latents.
    """

    latents: Tensor
    mask: Tensor | None
    channels: Tensor | None


def start_from_images(
    rows: Sequence[Row],
    canvases: Sequence[Canvas],
    strength: float | None,
    vae: VAE,
    task: Task,
    tile: int | None = None,
) -> list[Row]:
    """Make rows of pure noise start from their input images. Each image is encoded once.

    strength: None adds no noise: for images that already have the noise level of the first step, and for inversion.
    tile: side in latents, as in `tiled_vae.tiling`.
    """
    device = rows[0].state.latents.device
    sources = {canvas: _encode(canvas, vae, task, device, tile) for canvas in dict.fromkeys(canvases)}
    return [
        _start_from_image(row, sources[canvas], canvas, strength, task)
        for row, canvas in zip(rows, canvases, strict=True)
    ]


def _encode(canvas: Canvas, vae: VAE, task: Task, device: torch.device, tile: int | None) -> Source:
    if canvas.latents is not None:
        return Source(canvas.latents.to(device), None, None)
    pixels = canvas.pixels().to(device)
    latents = encode_pixels(vae, pixels[None], tile)[0]
    if task == "edit":
        return Source(latents, None, latents)  # InstructPix2Pix reads unscaled latents
    scale = vae.config.scaling_factor
    if canvas.mask is None:
        return Source(latents * scale, None, None)
    hole = canvas.mask_pixels().to(device)
    mask = to_latent_mask(hole, vae.config.downscale)
    if task == "generate":
        return Source(latents * scale, mask, None)
    masked = encode_pixels(vae, (pixels * (1 - hole))[None], tile)[0]
    return Source(latents * scale, mask, torch.cat([mask, masked * scale]))


def _start_from_image(row: Row, source: Source, canvas: Canvas, strength: float | None, task: Task) -> Row:
    if source.channels is not None:
        row = _with_channels(row, source.channels, task)
    if task == "edit":
        return row
    state, clean, mask = row.state, source.latents, source.mask
    noise, known = state.latents, None
    if mask is not None and canvas.noise_fill:
        clean = torch.lerp(clean, draw_noise([state.generator], clean.shape, clean)[0], mask)
    start = state.plan.noisy(clean, noise) if len(state.plan) and strength is not None else clean
    if mask is not None and task == "generate":
        known = Known(source.latents, mask)
        start = torch.lerp(start, noise, mask) if strength == 1 else start
    elif strength == 1:
        start = noise
    return replace(row, state=replace(state, latents=start), known=known)


def _with_channels(row: Row, channels: Tensor, task: Task) -> Row:
    def with_image(conditioning: Conditioning) -> Conditioning:
        return conditioning.with_channels(channels)

    def without_image(conditioning: Conditioning) -> Conditioning:
        return conditioning.with_channels(torch.zeros_like(channels))

    positive, negative, without = tuple(prompt.map(with_image) for prompt in row.positive), row.negative, None
    if negative is not None:
        without = negative.map(without_image) if task == "edit" else None
        negative = negative.map(with_image)
    return replace(row, positive=positive, negative=negative, without_image=without)
