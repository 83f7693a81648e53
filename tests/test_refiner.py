"""SDXL's refiner and its size conditioning, step by step against diffusers' two pipelines."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import InputError
from latentdiff.images.edit import EditOptions
from latentdiff.refiner import generate_refined
from latentdiff.sampling.samplers import SAMPLERS
from tests.small import write_small_refiner

PROMPT = "a red apple"
EXTENDED: dict[str, Any] = {"image": Image.new("RGB", (16, 16)), "edit": EditOptions(extend={"left": 8})}
SIZES: dict[str, Any] = {
    "original_size": (40, 24), "crops_coords_top_left": (3, 5), "target_size": (30, 20),
    "negative_original_size": (12, 14), "negative_crops_coords_top_left": (0, 1), "negative_target_size": (8, 9),
}  # fmt: skip
SCORES = {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.5}


@pytest.fixture(scope="module")
def refiner_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_refiner(tmp_path_factory.mktemp("models") / "small-refiner")


def opened(folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def base(xl_folder: Path) -> LatentDiffusionPipeline:
    return opened(xl_folder)


@pytest.fixture(scope="module")
def refiner(refiner_folder: Path) -> LatentDiffusionPipeline:
    return opened(refiner_folder)


@pytest.fixture(scope="module")
def theirs(xl_folder: Path, refiner_folder: Path) -> tuple[Any, Any]:
    """diffusers' pipelines; the refiner decodes with the VAE of the base model, as in its documentation."""
    first = diffusers.StableDiffusionXLPipeline.from_pretrained(xl_folder)
    second = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner_folder, vae=first.vae)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    return first, second


def of_diffusers(scheduler: str, pipes: tuple[Any, Any], switch: float, **settings: Any) -> tuple[list[Tensor], Any]:
    """The latents after each step of both models, and the image."""
    seen: list[Tensor] = []

    def watch(_pipe: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"])
        return {}

    for pipe in pipes:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    shared = {"num_inference_steps": 10, "guidance_scale": 4.0, "callback_on_step_end": watch}
    shared |= {"generator": torch.Generator().manual_seed(5)} | {k: settings.pop(k) for k in ("eta",) if k in settings}
    scores = {name: settings.pop(name) for name in SCORES if name in settings}
    latents = pipes[0](PROMPT, denoising_end=switch, output_type="latent", height=16, width=24, **shared, **settings)
    settings = {name: value for name, value in settings.items() if "target" not in name}
    image = pipes[1](
        PROMPT, image=latents.images, denoising_start=switch, output_type="np", **shared, **settings, **scores
    )
    return seen, image.images[0]


@pytest.mark.parametrize("switch", [0.5, 0.8])
@pytest.mark.parametrize(
    ("sampler", "scheduler", "settings"),
    [
        ("ddim", "DDIMScheduler", {}),
        ("ddim", "DDIMScheduler", {"eta": 1.0}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", {}),
        ("ddim", "DDIMScheduler", {**SIZES, **SCORES}),
    ],
)
def test_every_step_equals_diffusers(
    sampler: str, scheduler: str, settings: dict[str, Any], switch: float, base: Any, refiner: Any, theirs: Any
) -> None:
    seen: list[Tensor] = []
    expected, image = of_diffusers(scheduler, theirs, switch, **settings)
    found = generate_refined(
        base, refiner, switch, prompt=PROMPT, seed=5, height=16, width=24, num_inference_steps=10, guidance_scale=4.0,
        sampler=sampler, spacing="trailing", output_type="np", **settings,
        callback=lambda info: seen.append(info.latents),
    )  # fmt: skip
    assert len(seen) == len(expected) == 10
    for ours, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-4, rtol=1e-4)
    assert image.std() > 0.01 and np.abs(found.images[0] - image).max() * 255 <= 1


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "lcm"])
def test_a_model_that_refines_itself_continues_where_it_stopped(sampler: str, base: Any) -> None:
    """This is exact for samplers that use no earlier prediction of x0, and with the same noise."""
    settings: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 8, "sampler": sampler}
    settings |= {"output_type": "latent", "height": 16, "width": 16}
    whole, parts = base(**settings).images, generate_refined(base, base, 0.6, **settings).images
    close = torch.allclose(whole, parts, atol=1e-5)
    assert close == (not sampler.startswith("dpmpp"))
    assert (whole - parts).abs().max() < 0.5 * whole.abs().max()


def test_schedules_of_prompts_count_the_steps_of_the_whole_run(base: Any) -> None:
    settings: dict[str, Any] = {"seed": 3, "num_inference_steps": 8, "sampler": "ddim", "output_type": "latent"}
    changing = "a [red apple:cat face:0.75]"
    whole = base(changing, **settings).images
    assert torch.allclose(generate_refined(base, base, 0.5, prompt=changing, **settings).images, whole, atol=1e-5)
    assert not torch.allclose(base("a red apple", **settings).images, whole, atol=1e-2)


def test_batches_lora_tags_and_second_prompts_are_of_the_base_model(base: Any, refiner: Any) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 6, "output_type": "latent", "num_images_per_prompt": 2}
    texts = {"prompt": [PROMPT, "猫"], "negative_prompt": ["", "wrong colours"], "prompt_2": ["猫", PROMPT]}
    many = generate_refined(base, refiner, seed=1, **texts, **settings)
    one = {name: value[1] for name, value in texts.items()}
    alone = generate_refined(base, refiner, seed=3, **one, **settings | {"num_images_per_prompt": 1})
    assert many.seeds == [1, 2, 3, 4]
    assert torch.allclose(many.images[2], alone.images[0], atol=1e-4)
    with pytest.raises(InputError, match="the prompt names <lora:x>, which is not loaded"):
        generate_refined(base, refiner, prompt="a <lora:x:1>", num_inference_steps=6)


def test_an_inversion_has_no_refiner(base: Any, refiner: Any) -> None:
    with pytest.raises(InputError, match=r"source_prompt= \(--source-prompt\) cannot be combined with a refiner"):
        generate_refined(base, refiner, prompt=PROMPT, source_prompt=PROMPT, image=EXTENDED["image"])


def test_a_callback_can_stop_either_model(base: Any, refiner: Any) -> None:
    for last in (2, 7):
        calls: list[int] = []
        stop = lambda _info, calls=calls, last=last: calls.append(1) or len(calls) == last  # noqa: E731
        made = generate_refined(base, refiner, prompt=PROMPT, num_inference_steps=8, callback=stop)
        assert made.stopped and len(calls) == last and len(made.images) == 1


def test_only_the_refiner_reads_a_score(refiner: Any) -> None:
    draw = lambda **given: refiner(PROMPT, seed=1, num_inference_steps=2, output_type="latent", **given).images  # noqa: E731
    assert torch.equal(draw(aesthetic_score=6.0, negative_aesthetic_score=2.5), draw())
    assert not torch.equal(draw(aesthetic_score=2), draw())


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("base", {"aesthetic_score": 7}, r"aesthetic_score= \(--aesthetic-score\) is only for SDXL's refiner"),
        ("refiner", {"target_size": (8, 8)}, "target_size= .* is not read by SDXL's refiner"),
        ("sd", {"original_size": (8, 8)}, r"original_size= \(--original-size\) is only for Stable Diffusion XL"),
        ("base", {"original_size": (8, 0)}, "original_size=0 must be"),
        ("base", {"crops_coords_top_left": 4}, r"crops_coords_top_left=4 must be a pair, top and left"),
        ("refiner", {"aesthetic_score": float("nan")}, "aesthetic_score=nan must be a finite number"),
        ("base", {"denoising_end": 1.0}, "denoising_end=1.0 must be between 0 and 1; try 0.8"),
        ("base", {"denoising_end": 0.01}, "denoising_end=0.01 leaves none of 4 steps before it"),
        ("base", {"denoising_end": 0.999}, "denoising_end=0.999 leaves none of 4 steps after it"),
        ("base", {"denoising_start": 0.5}, "denoising_start= requires an input image"),
        ("base", {"denoising_start": 0.5, "denoising_end": 0.3, "image": torch.zeros(1, 4, 8, 8)}, "must be below"),
        (
            "base",
            {"denoising_start": 0.5, "strength": 0.3, "image": torch.zeros(1, 4, 8, 8)},
            "both set where sampling starts",
        ),
        ("base", EXTENDED | {"denoising_end": 0.5}, "denoising_end= and refiners cannot be used with a mask, extend"),
    ],
)
def test_incompatible_settings_are_named_in_the_error(
    which: str, change: dict[str, Any], message: str, base: Any, refiner: Any, model_folder: Path
) -> None:
    pipe = {"base": base, "refiner": refiner}.get(which) or opened(model_folder)
    with pytest.raises(InputError, match=message):
        pipe(PROMPT, num_inference_steps=4, **change)


def test_a_refiner_of_another_family_is_refused(
    base: Any, refiner_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = opened(write_small_refiner(tmp_path / "x", scaling_factor=0.5))
    with pytest.raises(InputError, match=r"differ in the scale of latents \(0\.5 and 0\.18"):
        generate_refined(base, other, prompt=PROMPT)
