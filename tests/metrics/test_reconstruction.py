"""Reconstruction metrics against closed forms and torchmetrics; `latentdiff evaluate --vae`."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from latentdiff import cli
from latentdiff.errors import InputError, NonFiniteError
from latentdiff.metrics import features, reconstruct
from latentdiff.metrics.features import FeatureNetwork
from latentdiff.metrics.pictures import FolderPictures, read_pictures
from latentdiff.metrics.reconstruction import psnr, ssim
from latentdiff.models.vae import AutoencoderKL, DiagonalGaussian
from tests.metrics.test_evaluate import means, pictures
from tests.small import small_vae_config

NETWORK = FeatureNetwork("means", "none", True, means)


class Keeps(nn.Module):
    """A VAE that keeps every pixel, with a posterior of deviation 0.3; pixels are its latents."""

    def __init__(self, scaling_factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"scaling_factor": scaling_factor})

    def encode(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x, torch.full_like(x, 0.09).log())

    def decode(self, z: Tensor) -> Tensor:
        return z


def test_psnr_is_that_of_torchmetrics() -> None:
    made, real = torch.randint(256, (2, 3, 3, 24, 20), dtype=torch.uint8)
    expected = peak_signal_noise_ratio(made.double(), real.double(), 255.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(made, real), expected.double(), rtol=1e-5)


def test_ssim_uses_only_complete_windows() -> None:
    """SSIM at one position of an 11 x 11 picture, eq. 13 with the window's weighted moments."""
    made, real = torch.randint(256, (2, 1, 3, 11, 11), dtype=torch.uint8)
    taps = torch.exp(-(torch.arange(11.0, dtype=torch.float64) - 5).square() / (2 * 1.5**2))
    window = torch.outer(taps, taps) / taps.sum() ** 2

    def mean(values: Tensor) -> Tensor:
        return (window * values).sum((-2, -1))

    x, y, c1, c2 = made.double(), real.double(), 2.55**2, 7.65**2
    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    similarity = (2 * mean(x) * mean(y) + c1) * (2 * covariance + c2)
    similarity /= (mean(x) ** 2 + mean(y) ** 2 + c1) * (variances + c2)
    assert ssim(made, real).item() == pytest.approx(similarity.mean().item(), rel=1e-9)


def test_closed_forms() -> None:
    """Uniform pictures: PSNR of a constant error, and only the luminance term of SSIM."""
    first, second = (torch.full((1, 3, 16, 16), v, dtype=torch.uint8) for v in (100, 110))
    assert psnr(first, second).item() == pytest.approx(20 * torch.log10(torch.tensor(25.5)).item(), rel=1e-6)
    c1 = 2.55**2
    assert ssim(first, second).item() == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1), rel=1e-9)
    assert ssim(first, first).item() == pytest.approx(1, abs=1e-12)
    with pytest.raises(InputError, match="sides of 11 pixels or more, not 8"):
        ssim(first[..., :8], second[..., :8])


def test_a_lossless_vae(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "real", 20, 1)
    real = FolderPictures(folder, read_pictures(folder), 32)
    pixels = torch.cat(list(real.batches())).double() / 127.5 - 1
    std = (pixels.square().mean() + 0.09 - pixels.mean() ** 2).sqrt().item()
    vae = Keeps(round(1 / std, 5))
    result = reconstruct(vae, real, "keeps", NETWORK, resamples=5)  # type: ignore[arg-type]
    values = {key: one.value for key, one in result.values.items()}
    assert values["ssim"] == pytest.approx(1) and values["psnr"] > 100
    assert values["frechet_distance"] == pytest.approx(0, abs=1e-9)
    assert values["latent_std"] == pytest.approx(1, abs=1e-4) and result.notes == []
    assert values["latent_mean"] == pytest.approx(pixels.mean().item() / std, abs=1e-4)
    assert len(result.generated["channel_std"]) == 3 and len(result.shown) == 20
    wrong = reconstruct(Keeps(2 / std), real, "keeps", None, resamples=5)  # type: ignore[arg-type]
    assert "frechet_distance" not in wrong.values
    assert f"deviation of 2.000, not 1; use {1 / std:.5f}" in wrong.notes[0]
    with pytest.raises(InputError, match="resamples=1 must be at least 2; try 100"):
        reconstruct(vae, real, "keeps", resamples=1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="3 pictures are too few"):
        reconstruct(vae, FolderPictures(folder, real.rows[:3], 32), "keeps")  # type: ignore[arg-type]


def test_a_vae_with_nan_output_is_an_error(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "real", 8, 1)
    real = FolderPictures(folder, read_pictures(folder), 32)
    vae = AutoencoderKL(small_vae_config())
    nn.init.constant_(vae.decoder.conv_out.weight, float("nan"))
    with pytest.raises(NonFiniteError, match="the VAE's reconstructions are not finite"):
        reconstruct(vae, real, "breaks")


def test_the_command(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(features.NETWORKS, "means", lambda weights, device: NETWORK)
    folder, out = pictures(tmp_path / "real", 8, 1), tmp_path / "out.json"

    def run(*words: object) -> int:
        options = ["--real", folder, "--features", "means", "--resamples", 3, *words]
        monkeypatch.setattr(sys, "argv", ["latentdiff", "evaluate", *map(str, options)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            sys.exit(0)
        return int(stopped.value.code or 0)

    page = tmp_path / "page.html"
    assert run("--vae", model_folder, "-o", out, "--html", page) == 0
    found = json.loads(out.read_text())
    assert list(found["values"]) == ["psnr", "ssim", "latent_mean", "latent_std", "frechet_distance"]
    assert found["resolution"] == 16 and found["generated"]["vae"] == str(model_folder)
    assert "PSNR, dB" in capsys.readouterr().out and page.read_text().count("data:image/jpeg") == 16
    inner = tmp_path / "inner.json"
    assert run("--vae", model_folder / "vae", "-o", inner) == 0
    assert json.loads(inner.read_text())["values"] == found["values"]
    for words, reason in (
        (["--vae", model_folder, "--steps", 3], "--vae cannot be combined with --steps"),
        (["--vae", tmp_path / "none"], "does not exist; give a model folder"),
    ):
        assert run(*words) == 2 and reason in capsys.readouterr().err
