"""Variations: noise of two seeds, mixed on the sphere."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from latentdiff import LatentDiffusionPipeline
from latentdiff.cli import main
from latentdiff.errors import InputError
from latentdiff.hires import Hires, generate_hires
from latentdiff.inputs import read_inputs
from latentdiff.recipe import read_any, read_recipe
from latentdiff.sampling.interpolation import slerp

PROMPT = "a red apple"
CALL: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 1.0])
def test_slerp_turns_by_a_fraction_of_the_angle(t: float) -> None:
    first, second = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    second *= first.norm() / second.norm()
    angle = math.acos(float((first * second).sum() / first.norm() ** 2))
    mixed = slerp(first, second, t)
    assert math.isclose(float(mixed.norm()), float(first.norm()), rel_tol=1e-12)
    for end, part in ((first, t), (second, 1 - t)):
        assert math.isclose(float((end * mixed).sum() / first.norm() ** 2), math.cos(part * angle), abs_tol=1e-12)


def test_slerp_of_parallel_vectors_is_their_line() -> None:
    noise = torch.randn(4, 8, 8)
    torch.testing.assert_close(slerp(noise, 3 * noise, 0.25), 1.5 * noise)
    torch.testing.assert_close(slerp(noise, -noise, 0.5), 0 * noise)


def test_the_noise_of_a_variation_is_between_that_of_two_seeds(pipe: LatentDiffusionPipeline) -> None:
    def noise(**settings: Any) -> torch.Tensor:
        inputs = read_inputs(pipe.limits, PROMPT, num_images_per_prompt=2, **settings)
        return torch.stack([row.state.latents for row in pipe.start(inputs)])

    found = noise(seed=3, variation_seed=8, variation_strength=0.3)
    for k, one in enumerate(found):
        assert torch.equal(one, slerp(noise(seed=3)[0], noise(seed=8)[k], 0.3))
    assert torch.equal(noise(seed=[3, 4], variation_seed=[8, 9], variation_strength=1.0), noise(seed=8))


def test_strength_0_is_the_same_image_and_1_another(pipe: LatentDiffusionPipeline) -> None:
    def image(**settings: Any) -> np.ndarray:
        return pipe(PROMPT, **CALL, **settings).images[0]

    near, same, other = (image(seed=3, variation_seed=8, variation_strength=s) for s in (0.05, 0.0, 1.0))
    assert np.array_equal(same, image(seed=3)) and np.array_equal(other, image(seed=8))
    assert 0 < np.abs(near - same).mean() < np.abs(other - same).mean()


def test_samplers_draw_later_noise_from_the_seed(pipe: LatentDiffusionPipeline) -> None:
    [alone] = pipe.start(read_inputs(pipe.limits, PROMPT, seed=3))
    [varied] = pipe.start(read_inputs(pipe.limits, PROMPT, seed=3, variation_seed=8, variation_strength=1.0))
    assert not torch.equal(varied.state.latents, alone.state.latents)
    assert torch.equal(varied.state.generator.get_state(), alone.state.generator.get_state())


def test_the_second_pass_of_hires_varies_as_the_first(pipe: LatentDiffusionPipeline) -> None:
    settings: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "num_images_per_prompt": 2, "variation_strength": 0.2}
    first = generate_hires(pipe, Hires(2), **settings, **CALL)
    assert first.seeds == [3, 3] and len(set(first.variation_seeds)) == 2
    again = generate_hires(pipe, Hires(2), **settings, variation_seed=first.variation_seeds, **CALL)
    assert np.array_equal(first.images, again.images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variation_seed": 3}, "variation_seed=3 requires variation_strength="),
        ({"variation_strength": 1.2}, "variation_strength=1.2 must be from 0"),
        ({"variation_strength": 0.1, "variation_seed": -1}, "variation_seed=-1 must be from 0"),
        ({"variation_strength": 0.1, "variation_seed": [1, 2]}, "variation_seed has 2 numbers for 1 images"),
        ({"variation_strength": 0.1, "latents": torch.zeros(1, 4, 8, 8)}, "omit it or latents="),
    ],
)
def test_settings_that_cannot_be_varied_are_errors(
    change: dict[str, Any], message: str, pipe: LatentDiffusionPipeline
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        pipe(PROMPT, num_inference_steps=2, **change)


def generate(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["latentdiff", "generate", *map(str, arguments)])
        main()
    return int(ended.value.code or 0)


def test_recipes_store_variations(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    varied = ["--seed", 3, "--variation-strength", 0.2, "--variation-seed", 8, "--num-images", 2]
    assert generate(PROMPT, "--model", model_folder, "--steps", 3, *varied, "-o", "a.png") == 0
    recipe = read_recipe(Path("a-2.png"))
    assert (recipe.seed, recipe.variation_seed, recipe.variation_strength) == (3, 9, 0.2)
    assert generate("--recipe", "a-2.png", "-o", "b.png") == 0
    assert read_recipe(Path("b.png")) == recipe
    first, second = (np.asarray(Image.open(name)).astype(int) for name in ("a-2.png", "b.png"))
    assert np.abs(first - second).max() <= 1  # bfloat16 in batches of two and of one
    with Image.open("a-2.png") as image:
        assert "Variation seed: 9, Variation seed strength: 0.2" in image.info["parameters"]
    assert generate(PROMPT, "--variation-seed", 8, "-o", "c.png") == 2


def test_variations_of_a1111_are_read(tmp_path: Path) -> None:
    def found(pairs: str) -> Any:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("parameters", f"a cat\nSteps: 3, Sampler: Euler, CFG scale: 2, Seed: 8, Size: 24x16, {pairs}")
        Image.new("RGB", (4, 4)).save(tmp_path / "theirs.png", pnginfo=chunks)
        return read_any(tmp_path / "theirs.png")

    settings = found("Variation seed: 5, Variation seed strength: 0.25").settings
    assert (settings["variation_seed"], settings["variation_strength"]) == (5, 0.25)
    assert found("Variation seed: 5").dropped == ["Variation seed: 5"]
    assert found("Variation seed: 5, Variation seed strength: 0.25, Seed resize from: 512x512").dropped == [
        "Seed resize from: 512x512"
    ]
