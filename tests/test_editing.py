"""Image to image, inpainting and editing by instruction: compared with diffusers' pipelines, and their guarantees."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.components import write_pipeline
from latentdiff.denoiser import Row
from latentdiff.errors import InputError
from latentdiff.images.edit import EditOptions
from latentdiff.inputs import read_inputs
from latentdiff.models.unet import UNet2DConditionModel
from tests.small import small_components

PROMPT = "a red apple"
KEEP_NOTHING = EditOptions(paste_back=False)
MASKED: dict[str, Any] = {"mask_image": Image.fromarray(np.eye(16, 32, dtype=np.uint8) * 255)}


def picture(width: int = 32, height: int = 16, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = np.stack([np.sin(5 * x + 3 * y), np.cos(4 * y), np.sin(7 * x)], axis=-1) * 100 + 128
    noise = np.random.default_rng(seed).normal(0, 10, waves.shape)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def mask_of(box: tuple[int, int, int, int], width: int = 32, height: int = 16) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return mask


def opened(folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> LatentDiffusionPipeline:
    return opened(model_folder)


@pytest.fixture(scope="module")
def model_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A small model whose U-Net reads this many channels, with SDXL's parts if `xl`."""

    def write(channels: int, xl: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("models") / f"reads-{channels}"
        parts = small_components(xl)
        config = parts.denoiser.config.model_copy(update={"in_channels": channels})
        write_pipeline(replace(parts, denoiser=UNet2DConditionModel(config)), folder)
        return folder

    return write


def reference(kind: str, folder: Path, **arguments: Any) -> np.ndarray:
    """Pixels of diffusers' pipeline of this name, whose VAE encodes to means as ours does."""
    theirs = getattr(diffusers, kind).from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    encode = theirs.vae.encode

    class Means:
        def __init__(self, latents: Tensor) -> None:
            self.latents = latents

    theirs.vae.encode = lambda pixels: Means(encode(pixels).latent_dist.mean)
    done = theirs(PROMPT, generator=torch.Generator().manual_seed(5), output_type="np", **arguments)
    return done.images[0]


def distance(ours: Any, theirs: np.ndarray) -> float:
    """The largest difference in steps of 8 bits."""
    assert theirs.std() > 0.01
    return float(np.abs(ours - theirs).max() * 255)


@pytest.mark.parametrize(("folder", "kind"), [("model_folder", ""), ("xl_folder", "XL")])
@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_image_to_image_equals_diffusers(
    folder: str, kind: str, strength: float, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(folder)
    settings: dict[str, Any] = {"image": picture(), "strength": strength, "num_inference_steps": 10}
    ours = opened(path)(PROMPT, seed=5, guidance_scale=4.0, output_type="np", **settings).images[0]
    theirs = reference(f"StableDiffusion{kind}Img2ImgPipeline", path, guidance_scale=4.0, **settings)
    assert distance(ours, theirs) <= 1


@pytest.mark.parametrize(("folder", "kind"), [("model_folder", ""), ("xl_folder", "XL")])
def test_inpainting_with_any_model_equals_diffusers(folder: str, kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    settings: dict[str, Any] = {"image": picture(), "mask_image": mask_of((8, 4, 20, 12)), "strength": 0.7}
    settings |= {"num_inference_steps": 10, "guidance_scale": 4.0, "height": 16, "width": 32}
    ours = opened(path)(PROMPT, seed=5, edit=KEEP_NOTHING, output_type="np", **settings).images[0]
    theirs = reference(f"StableDiffusion{kind}InpaintPipeline", path, **settings)
    assert distance(ours, theirs) <= 1


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_models_equal_diffusers(strength: float, model_with: Callable[[int], Path]) -> None:
    settings: dict[str, Any] = {"image": picture(), "mask_image": mask_of((8, 4, 20, 12)), "strength": strength}
    settings |= {"num_inference_steps": 10, "guidance_scale": 4.0, "height": 16, "width": 32}
    folder = model_with(9)
    ours = opened(folder)(PROMPT, seed=5, edit=KEEP_NOTHING, output_type="np", **settings).images[0]
    assert distance(ours, reference("StableDiffusionInpaintPipeline", folder, **settings)) <= 1


@pytest.mark.parametrize(("kind", "guidance_scale"), [("", 1.0), ("", 5.0), ("XL", 5.0)])
def test_instruct_pix2pix_equals_diffusers(kind: str, guidance_scale: float, model_with: Callable[..., Path]) -> None:
    settings: dict[str, Any] = {"image": picture(), "num_inference_steps": 10, "guidance_scale": guidance_scale}
    settings |= {"height": 16, "width": 32}
    folder = model_with(8, xl=kind == "XL")
    options = EditOptions(image_guidance_scale=2.0) if guidance_scale > 1 else None
    ours = opened(folder)(PROMPT, seed=5, edit=options, output_type="np", **settings).images[0]
    if not kind:
        del settings["height"], settings["width"]  # diffusers takes those of the image
    name = f"StableDiffusion{kind}InstructPix2PixPipeline"
    theirs = reference(name, folder, image_guidance_scale=2.0, **settings)
    assert distance(ours, theirs) <= 1


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lcm"])
def test_strength_1_is_text_to_image_and_0_the_round_trip(sampler: str, pipe: LatentDiffusionPipeline) -> None:
    settings: dict[str, Any] = {"seed": 2, "num_inference_steps": 5, "sampler": sampler, "output_type": "np"}
    from_noise = pipe(PROMPT, height=16, width=32, **settings).images
    assert np.array_equal(pipe(PROMPT, image=picture(), strength=1.0, **settings).images, from_noise)
    kept = pipe(PROMPT, image=picture(), strength=0.1, **settings | {"output_type": "pt"}).images
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1).float()[None] / 127.5 - 1
    trip = pipe.vae.decode(pipe.vae.encode(pixels).mean).detach() / 2 + 0.5
    assert (kept - trip.clamp(0, 1)).abs().max() <= 0.6 / 255
    half = pipe(PROMPT, image=picture(), strength=0.6, **settings).images
    assert np.isfinite(half).all() and not np.allclose(half, from_noise, atol=1e-3)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m_sde", "heun"])
def test_pixels_outside_the_mask_are_unchanged(strength: float, sampler: str, pipe: LatentDiffusionPipeline) -> None:
    image, blur, grown = picture(128, 96), 2.0, 3
    options = EditOptions(mask_blur=blur, mask_grow=grown)
    settings: dict[str, Any] = {"strength": strength, "sampler": sampler, "num_inference_steps": 4, "seed": 0}
    mask = mask_of((60, 40, 66, 46), 128, 96)
    done = pipe(PROMPT, image=image, mask_image=mask, edit=options, **settings).images[0]
    changed = np.argwhere((np.array(done) != np.array(image)).any(-1))
    reach = grown + 3 * blur + 2
    assert (changed.min(0) >= (40 - reach, 60 - reach)).all() and (changed.max(0) <= (45 + reach, 65 + reach)).all()
    assert len(changed) >= 36


def test_only_masked_paints_a_crop_at_the_models_size(pipe: LatentDiffusionPipeline) -> None:
    image, seen = picture(301, 203), []
    mask = mask_of((100, 80, 120, 90), 301, 203)
    done = pipe(
        PROMPT, image=image, mask_image=mask, edit=EditOptions(only_masked=8, mask_blur=1), num_inference_steps=2,
        callback=lambda info: seen.append(tuple(info.latents.shape[-2:])),
    ).images[0]  # fmt: skip
    assert set(seen) == {(8, 8)} and done.size == image.size
    changed = np.argwhere((np.array(done) != np.array(image)).any(-1))
    assert (changed.min(0) >= (75, 95)).all() and (changed.max(0) <= (94, 124)).all()
    assert len(changed) >= 20 * 10


def test_outpainting_paints_beyond_the_edges(pipe: LatentDiffusionPipeline) -> None:
    options = EditOptions(extend={"left": 16, "top": 8}, mask_blur=0)
    done = pipe(PROMPT, image=picture(), edit=options, num_inference_steps=3).images[0]
    assert done.size == (48, 24)
    inner = np.array(done)[8:, 16:]
    assert np.array_equal(inner, np.array(picture())) and np.array(done)[:, :16].std() > 0


def test_the_mask_may_be_the_alpha_channel_or_any_grey(pipe: LatentDiffusionPipeline) -> None:
    plain = mask_of((8, 4, 20, 12))
    layer = Image.new("RGBA", plain.size, "black")
    layer.putalpha(plain)
    settings: dict[str, Any] = {"image": picture(), "num_inference_steps": 2, "seed": 0, "output_type": "np"}
    masks = [plain, layer, plain.convert("RGB"), np.array(plain), torch.from_numpy(np.array(plain))[None] / 255]
    first, *others = (pipe(PROMPT, mask_image=mask, **settings).images for mask in masks)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("fill", ["original", "noise", "blur"])
def test_the_masked_area_starts_from_its_fill(fill: Any, pipe: LatentDiffusionPipeline) -> None:
    image = picture()
    other = image.copy()
    other.paste((255, 0, 0), (8, 4, 20, 12))
    settings: dict[str, Any] = {"mask_image": mask_of((8, 4, 20, 12)), "strength": 0.4, "num_inference_steps": 5}
    settings |= {"seed": 0, "edit": EditOptions(mask_fill=fill), "output_type": "np"}
    first, second = (pipe(PROMPT, image=one, **settings).images[0, 6:10, 11:17] for one in (image, other))
    assert np.abs(first - second).max() < 0.02 or fill == "original"
    if fill == "original":
        assert np.abs(first - second).max() > 0.03


@pytest.mark.parametrize("size", [(8, 8), (512, 16), (33, 70), pytest.param((4096, 64), marks=pytest.mark.slow)])
def test_any_size(size: tuple[int, int], pipe: LatentDiffusionPipeline) -> None:
    done = pipe(PROMPT, image=picture(*size), strength=0.5, num_inference_steps=2).images[0]
    assert done.size == (size[0] // 2 * 2, size[1] // 2 * 2)


def test_images_and_prompts_are_paired(pipe: LatentDiffusionPipeline) -> None:
    images, settings = [picture(seed=1), picture(seed=2)], {"num_inference_steps": 3, "output_type": "np"}
    pairs = pipe([PROMPT, "猫"], image=images, seed=4, num_images_per_prompt=2, **settings)
    alone = pipe("猫", image=images[1], seed=7, **settings).images
    assert pairs.seeds == [4, 5, 6, 7] and np.abs(pairs.images[3:] - alone).max() < 1e-2
    spread = pipe(PROMPT, image=images, seed=4, **settings).images
    assert (
        len(spread) == 2
        and np.abs(spread[1] - pipe(PROMPT, image=images[1], seed=5, **settings).images[0]).max() < 1e-2
    )
    with pytest.raises(InputError, match="image has 2 images for 3 prompts"):
        pipe([PROMPT] * 3, image=images)


def jobs() -> list[dict[str, Any]]:
    mask = mask_of((8, 4, 20, 12))
    return [
        {"image": picture(), "strength": 0.5},
        {"image": picture(), "mask_image": mask},
        {"image": picture(seed=3), "mask_image": mask, "strength": 0.4, "sampler": "heun"},
        {"height": 16, "width": 32, "sampler": "dpmpp_2m"},
    ]


def test_jobs_of_every_kind_share_a_batch(pipe: LatentDiffusionPipeline) -> None:
    def begin(job: dict[str, Any]) -> Row:
        return pipe.start(read_inputs(pipe.limits, PROMPT, seed=1, num_inference_steps=4, **job))[0]

    def finish(rows: list[Row]) -> list[Tensor]:
        done = {}
        live = dict(enumerate(rows))
        while live:
            stepped, _ = pipe.step(list(live.values()), batch=8)
            live = dict(zip(live, stepped, strict=True))
            done |= {k: row.result for k, row in live.items() if row.state.finished}
            live = {k: row for k, row in live.items() if not row.state.finished}
        return [done[k] for k in range(len(rows))]

    together = finish([begin(job) for job in jobs()])
    for job, latents in zip(jobs(), together, strict=True):
        assert torch.equal(finish([begin(job)])[0], latents)


def test_threads_with_different_jobs(pipe: LatentDiffusionPipeline) -> None:
    def run(k: int) -> np.ndarray:
        return pipe(PROMPT, seed=k, num_inference_steps=3, output_type="np", **jobs()[k % 4]).images

    expected = [run(k) for k in range(8)]
    found: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda k=k: found.update({k: run(k)})) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.allclose(found[k], expected[k], atol=1e-2) for k in range(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 1.7}, "strength=1.7 must be from 0"),
        ({"mask_image": mask_of((0, 0, 0, 0))}, "mask_image is completely black"),
        ({"mask_image": mask_of((1, 1, 9, 9), 16, 16)}, "mask_image is 16x16 and the image 32x16"),
        ({"image": None, "strength": 0.5}, "strength= requires an input image"),
        ({"image": None, "mask_image": mask_of((1, 1, 9, 9))}, "mask_image= requires an input image"),
        ({"image": Image.new("L", (100_000, 2))}, "side of 100000 pixels"),
        ({"image": 3}, "image=3 is not an image"),
        ({"image": []}, "empty"),
        ({"image": "nowhere.png"}, "nowhere.png cannot be read"),
        ({"image": np.zeros((4, 4, 7), np.uint8)}, r"shape \[4, 4, 7\]"),
        ({"image": np.full((4, 4, 3), 3.0)}, "values from 3 to 3"),
        ({"edit": EditOptions(only_masked=4)}, "only_masked=4 requires a mask"),
        ({"edit": EditOptions(mask_grow=2)}, "mask_grow=2 requires a mask"),
        ({"edit": EditOptions(mask_blur=1)}, "mask_blur=1 requires a mask"),
        ({"edit": EditOptions(mask_fill="blur"), "strength": 0.5}, "mask_fill='blur' requires a mask"),
        ({"edit": EditOptions(paste_back=False)}, "paste_back=False requires a mask"),
        ({"edit": EditOptions(image_guidance_scale=3)}, "image_guidance_scale=3 requires an InstructPix2Pix model"),
        (MASKED | {"edit": EditOptions(mask_fill="noise")}, "mask_fill='noise' has no effect at strength 1"),
        (MASKED | {"edit": EditOptions(only_masked=4, fit="contain")}, "fit='contain' has no effect with only_masked"),
        (MASKED | {"edit": EditOptions(only_masked=4, paste_back=False)}, "paste_back=False has no effect with"),
        ({"guidance_interval": (0.2, 0.8), "guidance_scale": 1}, "guidance_interval=0.2, 0.8 has no effect"),
        ({"image": torch.zeros(1, 4, 8, 8), "height": 32}, "height=32 is not that of the latents in image=, 16"),
        (
            {"image": torch.zeros(1, 4, 8, 8), "denoising_start": 0.5, "variation_strength": 0.2},
            "variation_strength= and denoising_start= both set where sampling starts",
        ),
        ({"generator": torch.Generator().manual_seed(1), "seed": 3}, "generator= and seed= have the same meaning"),
    ],
)
def test_invalid_edits_are_errors(change: dict[str, Any], message: str, pipe: LatentDiffusionPipeline) -> None:
    with pytest.raises(InputError, match=message):
        pipe(**({"prompt": PROMPT, "image": picture(), "num_inference_steps": 2} | change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "covr"}, "did you mean 'cover'"),
        ({"mask_fill": "fill"}, "mask_fill='fill' is unknown"),
        ({"extend": {"lft": 8}}, "did you mean 'left'"),
        ({"extend": {"left": 0, "top": 0}}, "extend={'left': 0, 'top': 0} adds no pixels"),
        ({"mask_blur": -1}, "mask_blur=-1 must be a number from 0"),
        ({"extend": {"left": 10**6}}, "extend left=1000000 must be"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EditOptions(**options)


def test_an_animation_is_not_one_picture(tmp_path: Path, pipe: LatentDiffusionPipeline) -> None:
    frames = [picture(seed=k) for k in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="animation of 3 frames"):
        pipe(PROMPT, image=tmp_path / "moving.gif")


def test_models_that_read_an_image_name_the_missing_input(model_with: Callable[[int], Path]) -> None:
    inpainting, editing = opened(model_with(9)), opened(model_with(8))
    with pytest.raises(InputError, match="an inpainting checkpoint; pass image= and mask_image="):
        inpainting(PROMPT)
    with pytest.raises(InputError, match="an image-editing checkpoint; pass image= without mask_image="):
        editing(PROMPT, image=picture(), mask_image=mask_of((1, 1, 9, 9)))
    with pytest.raises(InputError, match="strength= is not used"):
        editing(PROMPT, image=picture(), strength=0.5)
    with pytest.raises(InputError, match=r"image_guidance_scale=2.0 requires .* guidance above 1"):
        editing(PROMPT, image=picture(), guidance_scale=1.0, edit=EditOptions(image_guidance_scale=2.0))
    with pytest.raises(InputError, match=r"extend={'left': 8} cannot be used with an image-editing checkpoint"):
        editing(PROMPT, image=picture(), edit=EditOptions(extend={"left": 8}))


def test_a_negative_prompt_without_guidance_is_a_warning(pipe: LatentDiffusionPipeline) -> None:
    with pytest.warns(UserWarning, match="the negative prompt has no effect without guidance"):
        pipe(PROMPT, negative_prompt="blue", guidance_scale=1, num_inference_steps=1)
