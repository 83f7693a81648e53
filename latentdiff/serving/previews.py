"""Previews of unfinished images, at the size of the latents."""

import torch
from PIL import Image
from torch import Tensor

from latentdiff.pipeline import LatentDiffusionPipeline


class Previewer:
    """A linear map from latents to RGB at the latents' size, fitted to a VAE by least squares."""

    def __init__(self, pipe: LatentDiffusionPipeline) -> None:
        generator = torch.Generator().manual_seed(0)
        channels, side = pipe.denoiser.latent_channels, 8
        smooth = torch.randn(16, channels, 2, 2, generator=generator)
        latents = torch.nn.functional.interpolate(smooth, size=(side, side), mode="bicubic")
        with torch.no_grad():
            pixels = torch.cat([pipe.decode(one[None].to(pipe.device)).cpu() for one in latents])
        colours = torch.nn.functional.adaptive_avg_pool2d(pixels, side).movedim(1, -1).reshape(-1, 3)
        self._factors = torch.linalg.lstsq(_with_one(latents).reshape(-1, channels + 1), colours).solution

    def __call__(self, x0: Tensor) -> Image.Image:
        """x0 [C, h, w] to an image of w x h pixels."""
        colours = _with_one(x0[None].float().cpu())[0] @ self._factors
        return Image.fromarray(((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())


def _with_one(latents: Tensor) -> Tensor:
    """[B, C, h, w] to [B, h, w, C + 1], the last channel being 1."""
    moved = latents.movedim(1, -1)
    return torch.cat([moved, torch.ones_like(moved[..., :1])], -1)
