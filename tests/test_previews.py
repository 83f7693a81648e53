"""Previews: the published maps, the fitted one, and their cost."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from latentdiff import LatentDiffusionPipeline
from latentdiff.config.model import VAEConfig
from latentdiff.previews import Previewer, _fitted, _known


def test_a_map_that_is_linear_is_found(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    factors = torch.tensor([[0.2, 0.0, -0.1], [0.0, 0.15, 0.1], [0.1, -0.1, 0.0]])
    bias = torch.tensor([0.1, -0.2, 0.3])

    def encode(_: object, pixels: torch.Tensor) -> torch.Tensor:
        """Three channels of which the mean colours are a linear function, and one without any meaning."""
        colours = adaptive_avg_pool2d(pixels, pixels.shape[-1] // pipe.vae.config.downscale).movedim(1, -1)
        latents = ((colours - bias) @ factors.inverse()).movedim(-1, 1)
        return torch.cat([latents, torch.randn_like(latents[:, :1])], 1) / pipe.vae.config.scaling_factor

    monkeypatch.setattr("latentdiff.previews.encode_pixels", encode)
    x0 = torch.randn(4, 5, 7)
    wanted = (x0[:3].movedim(0, -1) @ factors + bias).clamp(-1, 1)
    found = torch.from_numpy(np.array(Previewer(pipe)(x0))) / 127.5 - 1
    assert (found - wanted).abs().max() <= 1.01 / 255


def test_vaes_of_sd_and_xl_have_published_maps(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    monkeypatch.setattr("latentdiff.previews.encode_pixels", None)
    grey: dict[float, np.ndarray] = {}
    for scale in (0.18215, 0.13025):
        pipe.vae.config = VAEConfig(scaling_factor=scale)
        grey[scale] = np.array(Previewer(pipe)(torch.zeros(4, 2, 2)))
        assert np.array(Previewer(pipe)(torch.randn(4, 8, 8))).std() > 10
    assert (np.abs(grey[0.18215].astype(int) - 127) <= 1).all()
    assert grey[0.13025][0, 0].tolist() == [150, 140, 130]


@pytest.mark.slow
def test_the_factors_of_the_bundled_model_are_those_that_are_fitted() -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(device="cpu", dtype="float32")
    known = _known(pipe)
    assert known is not None and (known - _fitted(pipe)).abs().max() <= 2e-3
