"""Arguments with diffusers' names: the same image if the meaning is the same, else an error that names ours."""

from pathlib import Path
from typing import Any

import pytest
import torch

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import InputError

PROMPT = "a red apple"


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", torch_dtype=torch.float32)


def call(pipe: LatentDiffusionPipeline, **arguments: Any) -> Any:
    return pipe(PROMPT, num_inference_steps=2, output_type="latent", **arguments).images


def test_fresh_generators_are_seeds(pipe: LatentDiffusionPipeline) -> None:
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(call(pipe, generator=generator), call(pipe, seed=7))
    several = [torch.Generator().manual_seed(seed) for seed in (3, 9)]
    assert torch.equal(
        call(pipe, generator=several, num_images_per_prompt=2), call(pipe, seed=[3, 9], num_images_per_prompt=2)
    )


def test_a_callback_of_diffusers_is_called_with_latents(pipe: LatentDiffusionPipeline) -> None:
    seen = []

    def on_step_end(_: Any, step: int, timestep: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, kwargs["latents"].shape))
        return kwargs

    call(pipe, callback_on_step_end=on_step_end)
    assert seen == [(0, (1, 4, 8, 8)), (1, (1, 4, 8, 8))]
    with pytest.raises(InputError, match="changes latents, which is not supported"):
        call(pipe, callback_on_step_end=lambda *_: {"latents": torch.zeros(1, 4, 8, 8)})


def test_the_pipeline_moves(pipe: LatentDiffusionPipeline) -> None:
    before = call(pipe, seed=1)
    assert pipe.to("cpu") is pipe and torch.equal(call(pipe, seed=1), before)
    with pytest.raises(
        InputError, match="device='cuda' is not usable here" if not torch.cuda.is_available() else "cuda:99"
    ):
        pipe.to("cuda" if not torch.cuda.is_available() else "cuda:99")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": torch.Generator(), "num_images_per_prompt": 2}, "1 generators for 2 images"),
        ({"guidance_rescale": 0.7}, "guidance_rescale= is an argument of diffusers; use guidance_interval="),
        ({"generatr": 1}, "did you mean 'generator'"),
    ],
)
def test_an_argument_with_another_meaning_names_ours(
    pipe: LatentDiffusionPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(pipe, **arguments)


def test_a_used_generator_is_refused(pipe: LatentDiffusionPipeline) -> None:
    generator = torch.Generator().manual_seed(1)
    torch.randn(1, generator=generator)
    with pytest.raises(InputError, match="has drawn nothing yet"):
        call(pipe, generator=generator)


def test_from_pretrained_accepts_redundant_arguments_and_rejects_the_others_by_name(model_folder: Path) -> None:
    open_ = LatentDiffusionPipeline.from_pretrained
    assert (
        open_(model_folder, safety_checker=None, use_safetensors=True, torch_dtype="bfloat16").dtype == torch.bfloat16
    )
    with pytest.raises(
        InputError, match="scheduler= is an argument of diffusers; use sampler= and spacing= in the call here"
    ):
        open_(model_folder, scheduler=object())
