"""DDIM inversion: compared with diffusers, and reproduction of images."""

import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff import LatentDiffusionPipeline
from latentdiff.cli import main
from latentdiff.config.schedule import ScheduleConfig
from latentdiff.errors import InputError
from latentdiff.images.edit import EditOptions
from latentdiff.inputs import read_inputs
from latentdiff.recipe import read_recipe
from latentdiff.sampling.inversion import inverse_plan
from latentdiff.sampling.loop import Levels, SamplerState, sample
from latentdiff.sampling.samplers import Plan, plan
from latentdiff.sampling.schedule import Schedule
from tests.test_editing import picture

PROMPT, SOURCE = "a red apple", "a cat face"


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")


def run(plan: Plan, latents: torch.Tensor, x0: Any) -> torch.Tensor:
    def denoiser(latents: torch.Tensor, levels: Levels) -> torch.Tensor:
        return x0(latents, levels.alphas[0], levels.sigmas[0])

    [state], _ = sample(denoiser, [SamplerState(plan, latents, torch.Generator())])
    return state.latents


def gaussian(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The exact x0 of data from N(0, 1/4)."""
    return alpha / 4 * x / (alpha**2 / 4 + sigma**2)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_inverse_of_a_plan_undoes_it(zero_snr: bool) -> None:
    config = ScheduleConfig(
        prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr, timestep_spacing="trailing"
    )
    forward = plan(Schedule(config), "ddim", 20)
    image = torch.randn(4, 8, 8, dtype=torch.float64) / 2
    noise = run(inverse_plan(forward, 30), image, gaussian)
    assert abs(float(noise.std()) - 1) < 0.2
    torch.testing.assert_close(run(forward, noise, gaussian), image, atol=1e-6, rtol=0)
    errors = [(run(forward, run(inverse_plan(forward, n), image, gaussian), gaussian) - image).norm() for n in (1, 3)]
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize("folder", ["model_folder", "xl_folder"])
def test_one_iteration_is_the_inversion_of_diffusers(folder: str, request: pytest.FixtureRequest) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(request.getfixturevalue(folder), device="cpu", dtype="float32")
    [row] = pipe.start(read_inputs(pipe.limits, SOURCE, num_inference_steps=10, guidance_scale=1, sampler="ddim"))
    image = torch.randn(4, 8, 8)
    inverse = inverse_plan(row.state.plan, 1)
    with torch.no_grad():
        [ours], _ = sample(pipe._guided([row], pipe.denoiser), [replace(row.state, plan=inverse, latents=image)])
        scheduler = diffusers.DDIMInverseScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=pipe.schedule.config.set_alpha_to_one, steps_offset=pipe.schedule.config.steps_offset,
        )  # fmt: skip
        scheduler.set_timesteps(10)
        theirs, text = image[None], row.terms(0)[0].conditioning
        for timestep in scheduler.timesteps:
            noise = pipe.denoiser(theirs, timestep[None].float(), text)
            theirs = scheduler.step(noise, timestep, theirs).prev_sample
    assert scheduler.timesteps.flip(0).tolist() == row.state.plan.timesteps
    torch.testing.assert_close(ours.latents, theirs[0], atol=1e-4 * float(theirs.std()), rtol=0)


def decibels(ours: np.ndarray, wanted: np.ndarray) -> float:
    return -10 * math.log10(float(((ours - wanted) ** 2).mean()))


def test_the_source_prompt_reproduces_the_image(pipe: LatentDiffusionPipeline) -> None:
    image = torch.randn(1, 4, 8, 16)
    settings: dict[str, Any] = {"image": image, "num_inference_steps": 20, "output_type": "latent", "strength": 0.5}
    found = pipe(SOURCE, source_prompt=SOURCE, guidance_scale=1, **settings).images
    assert (found - image).norm() < 1e-3 * image.norm()
    edited = pipe(PROMPT, source_prompt=SOURCE, guidance_scale=4, **settings).images
    assert 1e-2 * image.norm() < (edited - image).norm() < image.norm()


@pytest.mark.slow
def test_the_bundled_model_reproduces_real_images() -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(device="cpu")
    image = pipe("a cat face", seed=7).images[0]
    settings: dict[str, Any] = {"image": image, "num_inference_steps": 50, "output_type": "np"}
    trip = pipe(SOURCE, strength=0.0, **settings).images[0]
    found = pipe(SOURCE, source_prompt=SOURCE, guidance_scale=1, **settings).images[0]
    assert decibels(found, trip) >= 35


def test_each_image_has_its_source(pipe: LatentDiffusionPipeline) -> None:
    images, sources = [picture(seed=1), picture(seed=2)], [SOURCE, "猫"]
    settings: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}
    both = pipe([PROMPT, PROMPT], image=images, source_prompt=sources, **settings).images
    second = pipe(PROMPT, image=images[1], source_prompt="猫", **settings).images[0]
    torch.testing.assert_close(both[1], second, atol=1e-3, rtol=0)


def test_callbacks_see_the_inversion_and_may_not_stop_it(pipe: LatentDiffusionPipeline) -> None:
    seen: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"image": picture(), "source_prompt": SOURCE, "num_inference_steps": 2}
    pipe(PROMPT, callback=lambda info: seen.append((info.step, info.steps)), **settings)
    assert seen == [(k, 6) for k in range(1, 7)] + [(1, 2), (2, 2)]  # three evaluations per step of the inversion
    with pytest.raises(InputError, match="the callback stopped the inversion"):
        pipe(PROMPT, callback=lambda info: True, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "source_prompt= describes an input image; pass image="),
        ({"sampler": "dpmpp_2m"}, "source_prompt= requires sampler='ddim' with eta=0, not 'dpmpp_2m'"),
        ({"sampler": "ddim", "eta": 0.5}, "with eta=0.5"),
        ({"mask_image": Image.new("L", (32, 16), 255)}, "mask_image= cannot be combined with source_prompt="),
        ({"edit": EditOptions(extend={"left": 8})}, "extend= cannot be combined with source_prompt="),
        ({"variation_strength": 0.1}, "variation_strength= cannot be combined with source_prompt="),
        ({"source_prompt": "a <lora:x:1>"}, "source_prompt contains <lora:x"),
        ({"source_prompt": "a AND b"}, "AND cannot be used in source_prompt"),
        ({"source_prompt": ["a", "b"]}, "source_prompt has 2 texts for 1 prompts"),
    ],
)
def test_settings_that_cannot_be_inverted_are_errors(
    change: dict[str, Any], message: str, pipe: LatentDiffusionPipeline
) -> None:
    settings: dict[str, Any] = {"image": picture(), "source_prompt": SOURCE, "num_inference_steps": 2}
    with pytest.raises(InputError, match=re.escape(message)):
        pipe(PROMPT, **settings | change)


def test_one_step_from_pure_noise_cannot_be_undone() -> None:
    config = ScheduleConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(InputError, match="needs two steps"):
        inverse_plan(plan(Schedule(config), "euler", 1))


def generate(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["latentdiff", "generate", *map(str, arguments)])
        main()
    return int(ended.value.code or 0)


def test_the_recipe_contains_the_source_prompt(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture().save("in.png")
    options = ["--model", model_folder, "--image", "in.png", "--source-prompt", SOURCE, "--steps", 4]
    assert generate(PROMPT, *options, "-o", "a.png") == 0
    recipe = read_recipe(Path("a.png"))
    assert (recipe.source_prompt, recipe.sampler) == (SOURCE, "ddim")
    assert generate("--recipe", "a.png", "--image", "in.png", "-o", "b.png") == 0
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(Image.open("b.png")))
    assert generate(PROMPT, *options, "--hires", 2, "-o", "large.png") == 0
    assert Image.open("large.png").size == (64, 32)
    assert generate(PROMPT, "--source-prompt", SOURCE, "-o", "c.png") == 2


def test_editing_options_do_not_affect_inversion(pipe: LatentDiffusionPipeline) -> None:
    settings: dict[str, Any] = {"source_prompt": SOURCE, "num_inference_steps": 3, "image": picture()}
    done = pipe(PROMPT, edit=EditOptions(fit="contain"), height=16, width=16, **settings).images[0]
    assert done.size == (16, 16)
