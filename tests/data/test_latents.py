"""The latent cache: right numbers, and a new encoding when anything changed."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from latentdiff.data import latents as module
from latentdiff.data.containers import open_container
from latentdiff.data.folder import load_pixels
from latentdiff.data.latents import LatentImages, encode_rows
from latentdiff.data.layouts import Row
from latentdiff.models.vae import AutoencoderKL
from tests.small import small_vae_config


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(3):
        Image.effect_noise((16, 16), 60).convert("RGB").save(folder / f"{k}.png")
    return [Row(open_container(folder), f"{k}.png", (f"caption {k}",)) for k in range(3)]


@pytest.fixture
def vae() -> AutoencoderKL:
    return AutoencoderKL(small_vae_config()).eval().requires_grad_(False)


def test_moments_are_the_encoders(vae: AutoencoderKL, rows: list[Row], tmp_path: Path) -> None:
    moments = encode_rows(vae, rows, 16, tmp_path / "cache.safetensors")
    posterior = vae.encode(load_pixels(rows[1], 16)[None])
    item = LatentImages(rows, moments)[1, 0]
    assert torch.allclose(item["mean"], posterior.mean[0], atol=1e-2)
    assert torch.allclose(item["std"], (0.5 * posterior.logvar[0]).exp(), atol=1e-2)
    assert item["caption"] == "caption 1"


def test_only_a_change_encodes_again(
    vae: AutoencoderKL, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache.safetensors"
    loaded: list[Row] = []
    monkeypatch.setattr(module, "load_pixels", lambda row, size: loaded.append(row) or load_pixels(row, size))

    def encodes() -> bool:
        loaded.clear()
        encode_rows(vae, rows, 16, cache)
        return bool(loaded)

    assert encodes() and not encodes()
    os.utime(rows[0].where, (1, 1))
    assert encodes() and not encodes()
    vae.encoder.conv_in.bias += 1
    assert encodes() and not encodes()
    rows.pop()
    assert encodes() and not encodes()
    cache.write_bytes(cache.read_bytes()[:-20])
    assert encodes() and not encodes()
