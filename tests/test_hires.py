"""Large and repeating images: tiles, wrapped edges, the second pass, and ESRGAN's networks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import CheckpointError, InputError
from latentdiff.hires import Hires, generate_hires
from latentdiff.images.upscaling import load_upscaler, upscale
from latentdiff.models import tiled_vae
from latentdiff.models.esrgan import RRDBNet
from latentdiff.sampling.loop import Levels
from latentdiff.sampling.seamless import MARGIN, parse_axes, wrapped_around
from latentdiff.sampling.tiled_denoiser import in_tiles

PROMPT = "a red apple"
LEVELS = Levels([1.0], [1.0], [1.0])


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")


def blurred(latents: Tensor, _: Levels) -> Tensor:
    """A denoiser with a receptive field of one latent in each direction, and disturbances at its borders."""
    return F.avg_pool2d(F.pad(latents, (1, 1, 1, 1)), 3, stride=1)


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (37, 21)])
def test_tiles_of_a_local_denoiser_give_the_same_result_as_one_evaluation(size: tuple[int, int]) -> None:
    seen: list[int] = []

    def watched(latents: Tensor, levels: Levels) -> Tensor:
        seen.append(max(latents.shape[-2:]))
        return blurred(latents, levels)

    latents = torch.randn(2, 4, *size)
    found = in_tiles(watched, 16)(latents, LEVELS)
    assert max(seen) <= 16
    torch.testing.assert_close(found, blurred(latents, LEVELS), atol=1e-5, rtol=0)


def steps_across(images: Tensor, columns: list[int]) -> tuple[float, float]:
    """The mean difference of neighbouring columns at these places, and everywhere."""
    steps = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(0, 1, 2))
    return float(steps[columns].mean()), float(steps.mean())


def test_no_step_shows_where_tiles_meet(pipe: LatentDiffusionPipeline) -> None:
    settings: dict[str, Any] = {"height": 16, "width": 96, "num_inference_steps": 6, "seed": 1, "output_type": "latent"}
    found = pipe(PROMPT, tile=32, **settings).images
    assert not torch.allclose(found, pipe(PROMPT, **settings).images, atol=1e-3)
    seams = [k for k in range(12, 47) if k % 12 in (0, 1, 2)]
    at_seams, everywhere = steps_across(found, seams)
    assert at_seams < 1.3 * everywhere
    small = pipe(PROMPT, tile=32, **settings | {"width": 32}).images
    assert torch.equal(small, pipe(PROMPT, **settings | {"width": 32}).images)


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_a_wrapped_denoiser_is_equivariant_to_shifts(axes: str) -> None:
    latents = torch.randn(1, 4, 20, 24)
    wrapped = wrapped_around(blurred, axes)
    dimension = -1 if axes != "y" else -2
    rolled = wrapped(latents.roll(7, dimension), LEVELS)
    torch.testing.assert_close(rolled, wrapped(latents, LEVELS).roll(7, dimension), atol=1e-5, rtol=0)
    assert not torch.allclose(blurred(latents, LEVELS), wrapped(latents, LEVELS), atol=1e-2)


def test_a_seamless_image_has_no_seam(pipe: LatentDiffusionPipeline) -> None:
    settings: dict[str, Any] = {"height": 2 * MARGIN, "width": 64, "num_inference_steps": 6, "output_type": "pt"}
    at_seam, everywhere = 0.0, 0.0
    for seed in range(3):
        tile = pipe(PROMPT, seed=seed, seamless="x", **settings).images
        seam, mean = steps_across(tile.roll(32, -1), [31])
        at_seam, everywhere = at_seam + seam, everywhere + mean
    assert at_seam < 1.3 * everywhere


def test_the_second_pass_has_the_larger_size(pipe: LatentDiffusionPipeline, tmp_path: Path) -> None:
    call: dict[str, Any] = {"prompt": [PROMPT, "猫"], "seed": 3, "num_inference_steps": 4, "num_images_per_prompt": 2}
    for upscaler in ("lanczos", "latent"):
        done = generate_hires(pipe, Hires(1.5, upscaler=upscaler), **call)
        assert [image.size for image in done.images] == [(24, 24)] * 4 and done.seeds == [3, 4, 5, 6]
    small = pipe(**call).images[1]
    enlarged = small.resize((24, 24), Image.Resampling.LANCZOS)
    second = pipe(PROMPT, image=enlarged, strength=0.3, seed=4, num_inference_steps=4).images[0]
    first = generate_hires(pipe, Hires(1.5), **call).images[1]
    assert np.abs(np.asarray(second).astype(int) - np.asarray(first)).max() <= 1


@pytest.mark.parametrize(("tile", "unet", "vae"), [(16, 8, 16), (64, 32, 32), (None, 64, 64)])
def test_no_network_sees_more_than_a_tile(
    tile: int | None, unet: int, vae: int, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest latents that the U-Net and the VAE process in both passes, of which the second has 64 x 64."""
    monkeypatch.setattr(tiled_vae, "TILE", 32)  # pixels, at 2 pixels per latent
    monkeypatch.setattr(tiled_vae, "OVERLAP", 8)
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    sides: dict[str, list[int]] = {"unet": [], "encoder": [], "decoder": []}
    modules = {"unet": pipe.denoiser, "encoder": pipe.vae.encoder, "decoder": pipe.vae.decoder}
    for name, module in modules.items():
        scale = 2 if name == "encoder" else 1
        module.register_forward_pre_hook(
            lambda _, given, name=name, scale=scale: sides[name].append(max(given[0].shape[-2:]) // scale)
        )
    call: dict[str, Any] = {"prompt": PROMPT, "width": 64, "height": 64, "seed": 3, "num_inference_steps": 2}
    done = generate_hires(pipe, Hires(2, strength=0.5), tile=tile, **call)
    assert done.images[0].size == (128, 128)
    assert {name: max(seen) for name, seen in sides.items()} == {"unet": unet, "encoder": vae, "decoder": vae}


def old_name(name: str) -> str:
    """A name in ESRGAN's first files, from the published table."""
    parts = name.split(".")
    if parts[0] == "body":
        return f"model.1.sub.{parts[1]}.RDB{parts[2][-1]}.conv{parts[3][-1]}.0.{parts[4]}"
    places = {"conv_first": "0", "conv_body": "1.sub.2", "conv_up1": "3", "conv_up2": "6", "conv_hr": "8"}
    return f"model.{places.get(parts[0], '10')}.{parts[1]}"


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_both_layouts_of_esrgan_files_are_read(unshuffle: int, tmp_path: Path) -> None:
    network = RRDBNet(8, 4, 2, unshuffle).eval()
    state = network.state_dict()
    save_file({old_name(name): value for name, value in state.items()}, tmp_path / "old.safetensors")
    save_file(state, tmp_path / "new.safetensors")
    torch.save({"params_ema": state, "params": {k: 0 * v for k, v in state.items()}}, tmp_path / "new.pth")
    x = torch.rand(1, 3, 7, 10)
    expected = network(x)
    scale = 4 // unshuffle
    assert expected.shape == (1, 3, 7 * scale, 10 * scale)
    for name in ("old.safetensors", "new.safetensors", "new.pth"):
        loaded = load_upscaler(tmp_path / name, torch.device("cpu"), allow_pickle=True)
        assert torch.equal(loaded(x), expected)
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_upscaler(tmp_path / "new.pth", torch.device("cpu"))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is not an ESRGAN file"):
        load_upscaler(tmp_path / "other.safetensors", torch.device("cpu"))


def test_an_upscaler_that_is_no_file_is_an_error_with_the_known_names() -> None:
    with pytest.raises(InputError, match=r"upscaler='lanczs' is neither a file nor .*; did you mean 'lanczos'"):
        Hires(2, upscaler="lanczs").load_upscaler(torch.device("cpu"))


def test_upscaling_in_tiles_equals_upscaling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = RRDBNet(8, 4, 1).eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    whole = upscale(image, (200, 160), network)
    monkeypatch.setattr("latentdiff.images.upscaling.TILE", 40)
    monkeypatch.setattr("latentdiff.images.upscaling.OVERLAP", 24)
    tiled = upscale(image, (200, 160), network)
    assert np.abs(np.asarray(whole).astype(int) - np.asarray(tiled)).max() <= 1
    assert upscale(image, (75, 60)).size == (75, 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 5}, "tile=5 must be at least 16"),
        ({"tile": 17}, "tile=17 must be a multiple of 2"),
        ({"seamless": "z"}, "seamless='z' must be x, y or x,y"),
    ],
)
def test_values_out_of_range_are_errors(change: dict[str, Any], message: str, pipe: LatentDiffusionPipeline) -> None:
    with pytest.raises(InputError, match=message):
        pipe(PROMPT, **change)


def test_hires_out_of_range() -> None:
    with pytest.raises(InputError, match="hires=9 must be greater than 1"):
        Hires(9)
    assert parse_axes("y, x") == "xy"
