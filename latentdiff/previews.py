"""Previews of unfinished images: a linear map from latents to colours, at the resolution of the latents."""

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from latentdiff.config.model import VAEConfig
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.vae_codec import encode_pixels

SD_FACTORS = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473), (0, 0, 0))
"""For SD 1 and 2, channel by channel and a bias; source: discuss.huggingface.co/t/23204, "Decoding latents to RGB"."""
XL_BYTES = ((60, 60, 60), (-60, -5, 10), (25, 15, -5), (-70, -50, -35), (150, 140, 130))
"""For SDXL, in steps of 8 bits; source: T. Vass, "Explaining the SDXL latent space", huggingface.co/blog."""
EMOJI_FACTORS = (
    (-0.48, -0.57, -0.539), (0.173, -0.084, -1.777), (0.26, 0.013, -0.652),
    (-1.011, -0.657, -0.147), (0.197, 0.299, 1.297), (-1.699, -0.68, 0.175),
    (-1.068, -0.644, -0.329), (0.011, 0.272, 0.74), (1.252, 0.868, 0.968),
)  # fmt: skip
"""For the bundled model, as `_fitted` computes them in seconds; a test compares them."""
FITTED, DISCS, SIDE = 32, 2, 16  # images to which other maps are fitted, discs in each, latents per side; these gave
# 19 dB on images of the bundled model, of 20 that a linear map can reach, 16 to 48 images of 2 or 3 discs at least 16


class Previewer:
    """Converts x0 to a small image, with known factors for SD 1, 2, XL and the bundled model, else fitted ones."""

    def __init__(self, pipe: LatentDiffusionPipeline) -> None:
        known = _known(pipe)
        self._factors = _fitted(pipe) if known is None else known

    def __call__(self, x0: Tensor) -> Image.Image:
        """x0 [C, h, w] to an image of w x h pixels."""
        colours = _with_one(x0[None].float().cpu())[0] @ self._factors
        return Image.fromarray(((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())


def _known(pipe: LatentDiffusionPipeline) -> Tensor | None:
    """The factors of a VAE that its numbers identify."""
    config = pipe.vae.config
    if not isinstance(config, VAEConfig) or config.downscale != 8:
        return None
    xl = torch.tensor(XL_BYTES, dtype=torch.float32) / 127.5
    xl[-1] -= 1
    known = {(4, 0.18215): torch.tensor(SD_FACTORS), (4, 0.13025): xl, (8, 0.4676): torch.tensor(EMOJI_FACTORS)}
    for (channels, scale), factors in known.items():
        if config.latent_channels == channels and abs(config.scaling_factor - scale) < 1e-5:
            return factors
    return None


def _fitted(pipe: LatentDiffusionPipeline) -> Tensor:
    """Factors [C + 1, 3] fitted by least squares to the mean colours of encoded images."""
    pixels = _discs(SIDE * pipe.vae.config.downscale)
    with torch.no_grad():
        encoded = torch.cat([encode_pixels(pipe.vae, one[None].to(pipe.device)).cpu() for one in pixels])
    colours = adaptive_avg_pool2d(pixels, SIDE).movedim(1, -1).reshape(-1, 3)
    return torch.linalg.lstsq(_with_one(encoded * pipe.vae.config.scaling_factor).flatten(0, 2), colours).solution


def _discs(side: int) -> Tensor:
    """Images [FITTED, 3, side, side] in [-1, 1] of discs of random colours on white."""
    generator = torch.Generator().manual_seed(0)
    places, radii = torch.rand(FITTED, DISCS, 2, generator=generator), torch.rand(FITTED, DISCS, generator=generator)
    colours = torch.rand(FITTED, DISCS, 3, generator=generator) * 2 - 1
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    pixels = torch.ones(FITTED, side, side, 3)
    for image, *discs in zip(pixels, places, radii, colours, strict=True):
        for (top, left), radius, colour in zip(*discs, strict=True):
            image[(y - top).hypot(x - left) < 0.1 + 0.4 * radius] = colour
    return pixels.movedim(-1, 1)


def _with_one(latents: Tensor) -> Tensor:
    """[B, C, h, w] to [B, h, w, C + 1], the last channel being 1."""
    moved = latents.movedim(1, -1)
    return torch.cat([moved, torch.ones_like(moved[..., :1])], -1)
