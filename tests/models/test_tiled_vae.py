"""Tiled decoding: coverage and blending of tiles, and the difference from decoding at once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import NonFiniteError
from latentdiff.models import tiled_vae
from latentdiff.models.tiled_vae import encode_tiled
from latentdiff.models.vae import AutoencoderKL
from tests.small import small_vae_config


@pytest.mark.parametrize("length", [5, 16, 17, 18, 27, 28, 29, 40, 100])
@pytest.mark.parametrize("overlap", [2, 3, 8])
def test_weights_of_every_pixel_sum_to_1(length: int, overlap: int) -> None:
    total = torch.zeros(8 * length)
    found = tiled_vae.cuts(length, 16, overlap, 8)
    for cut in found:
        assert cut.latents.stop - cut.latents.start == min(16, length)
        assert cut.weights.min() > 0
        assert cut.inner.start == cut.kept.start - 8 * cut.latents.start >= 0
        assert cut.inner.stop == cut.kept.stop - 8 * cut.latents.start <= 8 * min(16, length)
        total[cut.kept] += cut.weights
    assert (total - 1).abs().max() < 1e-6
    assert (len(found) == 1) == (length <= 16)


def test_tile_edges_inside_the_picture_have_no_weight() -> None:
    first, second = tiled_vae.cuts(28, 16, 4, 8)
    assert first.inner == slice(0, 8 * 15) and second.inner == slice(8, 8 * 16)


def nearest(z: Tensor) -> Tensor:
    return F.interpolate(z[:, :3], scale_factor=8.0, mode="nearest")


def gather(decode: Callable[[Tensor], Tensor], z: Tensor, factor: int) -> Tensor:
    """Decode with a function instead of a VAE, which therefore has no norms."""
    return in_parts(nn.Identity(), lambda _, part: decode(part), z, factor)


def in_parts(vae: nn.Module, decode: tiled_vae.Process, z: Tensor, factor: int) -> Tensor:
    out = torch.full((len(z), 3, factor * z.shape[-2], factor * z.shape[-1]), float("nan"))
    for images, rows, pixels in tiled_vae.decode_parts(vae, decode, z, factor):
        out[images, :, rows] = pixels
    return out


@pytest.mark.parametrize("size", [(150, 150), (300, 97), (97, 401)])
def test_tiles_are_exact_for_a_decoder_whose_receptive_field_is_one_latent(size: tuple[int, int]) -> None:
    z = torch.randn(2, 4, *size)
    seen: list[Tensor] = []

    def decode(part: Tensor) -> Tensor:
        seen.append(part)
        return nearest(part)

    torch.testing.assert_close(gather(decode, z, 8), nearest(z), rtol=0, atol=1e-6)
    assert len(seen) > 2 * len(z)
    assert all(max(part.shape[-2:]) <= tiled_vae.TILE // 8 and len(part) == 1 for part in seen)


def test_pictures_of_up_to_a_megapixel_are_decoded_at_once() -> None:
    sizes: list[torch.Size] = []

    def decode(part: Tensor) -> Tensor:
        sizes.append(part.shape)
        return nearest(part)

    for side in (64, 96, 128):
        gather(decode, torch.randn(5, 4, side, side), 8)
    whole = [(4, 64), (1, 64), *[(1, 96)] * 5, *[(1, 128)] * 5]
    assert sizes == [(count, 4, side, side) for count, side in whole]


def test_a_convolution_is_exact_as_far_as_the_discarded_edge_reaches() -> None:
    kernel = torch.randn(3, 4, 5, 5)

    def decode(z: Tensor) -> Tensor:
        return F.interpolate(F.conv2d(z, kernel, padding=2), scale_factor=8.0, mode="nearest")

    z = torch.randn(1, 4, 160, 140)
    torch.testing.assert_close(gather(decode, z, 8), decode(z), rtol=0, atol=1e-4)


def test_tiled_decoding_agrees_with_decoding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention processes tiles instead of the image, so results differ, no more at seams than elsewhere."""
    for name, value in (("AT_ONCE", 64 * 64), ("TILE", 64), ("OVERLAP", 16)):
        monkeypatch.setattr(tiled_vae, name, value)
    vae = AutoencoderKL(small_vae_config()).requires_grad_(False)
    z = torch.randn(1, 4, 60, 60)
    whole = vae.decode(z)
    error = (in_parts(vae, lambda vae, part: vae.decode(part), z, 2) - whole).abs()
    assert 0 < error.mean() < 0.1 * whole.std()
    assert error[..., 48:72, :].mean() < 2 * error.mean()


@pytest.mark.parametrize("optimize", ["off", "auto"])
def test_colours_do_not_change_from_tile_to_tile(optimize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disc on white: tiles that are normalised on their own change its colour, and the white."""
    for name, value in (("AT_ONCE", 128 * 128), ("TILE", 128), ("OVERLAP", 32)):
        monkeypatch.setattr(tiled_vae, name, value)
    vae = LatentDiffusionPipeline.from_pretrained(device="cpu", dtype="float32", optimize=optimize).vae
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    disc = (x - 120).square() + (y - 120).square() < 80**2
    pixels = torch.where(disc, torch.tensor([0.8, -0.8, -0.6])[:, None, None], torch.ones(3, 1, 1))[None]
    with torch.inference_mode():
        z = vae.encode(pixels).mean
        whole = vae.decode(z)
        together = in_parts(vae, lambda vae, part: vae.decode(part), z, 8)
        alone = gather(vae.decode, z, 8)
        latents = encode_tiled(vae, lambda vae, part: vae.encode(part).mean, pixels, 8)
        latents_alone = encode_tiled(nn.Identity(), lambda _, part: vae.encode(part).mean, pixels, 8)
        assert (together - whole).square().mean() < 0.3 * (alone - whole).square().mean()
        assert (latents - z).square().mean() < 0.3 * (latents_alone - z).square().mean()
        torch.testing.assert_close(vae.decode(z), whole, rtol=0, atol=0)


def test_tiles_with_weights_that_stay_in_their_files(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AT_ONCE", 32 * 32), ("TILE", 32), ("OVERLAP", 8)):
        monkeypatch.setattr(tiled_vae, name, value)
    pipes = [
        LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32", optimize="off", **options)
        for options in ({}, {"low_memory": True})
    ]
    latents = torch.randn(1, 4, 24, 32)
    torch.testing.assert_close(pipes[1].decode(latents), pipes[0].decode(latents), rtol=0, atol=1e-6)


def test_a_large_picture_is_decoded_in_tiles_and_nan_pixels_are_an_error(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    latents = torch.randn(2, 4, 24, 32)
    whole = pipe.decode(latents)
    for name, value in (("AT_ONCE", 32 * 32), ("TILE", 32), ("OVERLAP", 8)):
        monkeypatch.setattr(tiled_vae, name, value)
    tiled = pipe.decode(latents)
    assert tiled.shape == whole.shape == (2, 3, 48, 64) and tiled.dtype == torch.float32
    assert 0 < (tiled - whole).abs().mean() < 0.05
    latents[1, 0, -1, -1] = float("nan")
    with pytest.raises(NonFiniteError, match="VAE"):
        pipe.decode(latents)
