"""Previews: the published maps, the fitted one, and what they cost."""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from latentdiff import LatentDiffusionPipeline
from latentdiff.config.model import VAEConfig
from latentdiff.previews import Previewer


def test_a_map_that_is_linear_is_found(model_folder: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    factors = torch.tensor([[0.2, 0.0, -0.1], [0.0, 0.15, 0.1], [0.1, -0.1, 0.0], [0.05, 0.1, 0.1]])

    def decode(latents: torch.Tensor) -> torch.Tensor:
        colours = torch.einsum("bchw,cr->brhw", latents, factors) + torch.tensor([0.1, -0.2, 0.3]).view(3, 1, 1)
        return colours.repeat_interleave(2, -1).repeat_interleave(2, -2)

    pipe.decode = decode  # type: ignore[method-assign]
    x0 = torch.randn(4, 5, 7)
    wanted = adaptive_avg_pool2d(decode(x0[None]), (5, 7))[0].clamp(-1, 1)
    found = torch.from_numpy(np.array(Previewer(pipe)(x0))).permute(2, 0, 1) / 127.5 - 1
    assert (found - wanted).abs().max() <= 1.01 / 255


def test_vaes_of_sd_and_xl_have_published_maps(model_folder: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    pipe.decode = None  # type: ignore[assignment, method-assign]
    grey: dict[float, np.ndarray] = {}
    for scale in (0.18215, 0.13025):
        pipe.vae.config = VAEConfig(scaling_factor=scale)
        grey[scale] = np.array(Previewer(pipe)(torch.zeros(4, 2, 2)))
        assert np.array(Previewer(pipe)(torch.randn(4, 8, 8))).std() > 10
    assert (np.abs(grey[0.18215].astype(int) - 127) <= 1).all()
    assert grey[0.13025][0, 0].tolist() == [150, 140, 130]
