"""Prompts through the complete pipeline, compared with diffusers and with each other."""

import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from latentdiff import LatentDiffusionPipeline
from latentdiff.denoiser import Row
from latentdiff.errors import InputError
from latentdiff.inputs import read_inputs
from latentdiff.models.conditioning import PromptConditioning
from latentdiff.text.text_conditioner import PromptOptions
from tests.checkpoints.test_lora_stack import trained

A1111 = PromptOptions()
LONG = "a (red:1.4) apple, a [cat] face, a ((rocket)), fluent 3d style, wrong colours BREAK (猫:0.5)"
CALL: dict[str, Any] = {"seed": 1, "num_inference_steps": 4, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> LatentDiffusionPipeline:
    return LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("folder", ["model_folder", "xl_folder"])
def test_a_long_weighted_prompt_equals_diffusers_with_its_embeddings(
    folder: str, request: pytest.FixtureRequest
) -> None:
    """The negative prompt has one chunk, which diffusers reads three times, as many as the prompt has."""
    path = request.getfixturevalue(folder)
    ours = LatentDiffusionPipeline.from_pretrained(path, device="cpu", dtype="float32")
    xl = folder == "xl_folder"
    theirs = (diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline).from_pretrained(path)
    theirs.set_progress_bar_config(disable=True)
    count = len(ours.text.encoders)
    positive, negative = (ours.text.encode_prompt([text] * count, A1111) for text in (LONG, "wrong"))
    embeds = {"prompt_embeds": positive.hidden, "pooled_prompt_embeds": positive.pooled}
    times = positive.tokens // negative.tokens
    embeds |= {"negative_prompt_embeds": negative.repeat_tokens(times).hidden}
    embeds |= {"negative_pooled_prompt_embeds": negative.pooled}
    settings = {"num_inference_steps": 10, "guidance_scale": 5.0, "latents": torch.randn(1, 4, 8, 8)}
    settings |= {"height": 16, "width": 16}
    mine = ours(LONG, negative_prompt="wrong", **settings).images[0]
    reference = theirs(**{key: value for key, value in embeds.items() if value is not None}, **settings).images[0]
    assert times == 3 and np.abs(np.asarray(mine, int) - np.asarray(reference, int)).max() <= 1


def test_an_image_does_not_depend_on_longer_prompts_in_its_batch(pipe: LatentDiffusionPipeline) -> None:
    alone = [pipe(prompt, **CALL | {"seed": k}).images for k, prompt in enumerate(["a cat face", LONG, "猫, " * 20])]
    together = pipe(["a cat face", LONG, "猫, " * 20], **CALL | {"seed": 0}).images
    assert (together - torch.cat(alone)).abs().max() < 1e-5 * together.abs().max()


def final(pipe: LatentDiffusionPipeline, rows: list[Row]) -> torch.Tensor:
    while not rows[0].state.finished:
        rows, _ = pipe.step(rows)
    return torch.stack([row.state.latents for row in rows])


def start(pipe: LatentDiffusionPipeline, prompt: str) -> Row:
    return pipe.start(read_inputs(pipe.limits, prompt, seed=1, num_inference_steps=4))[0]


def test_a_schedule_uses_one_prompt_after_the_other(pipe: LatentDiffusionPipeline) -> None:
    row, later = start(pipe, "a red apple"), start(pipe, "a cat face")
    for _ in range(3):
        (row,), _ = pipe.step([row])
    expected = final(pipe, [Row(row.state, later.positive, later.negative, later.guidance)])
    assert torch.allclose(pipe("a [red apple:cat face:0.75]", **CALL).images, expected, atol=1e-5)


def test_with_an_image_fractions_are_of_all_steps_and_counted_from_the_first_that_runs(
    pipe: LatentDiffusionPipeline,
) -> None:
    """At strength 0.5, 4 of 8 steps run: a quarter of all is 2 of them, and half of all is never reached."""
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)

    def edited(prompt: str) -> torch.Tensor:
        images: torch.Tensor = pipe(prompt, image=image, strength=0.5, **CALL | {"num_inference_steps": 8}).images
        return images

    assert torch.equal(edited("a [red apple:cat face:0.25]"), edited("a [red apple:cat face:2]"))
    assert torch.equal(edited("a [red apple:cat face:0.5]"), edited("a red apple"))
    assert not torch.allclose(edited("a [red apple:cat face:0.25]"), edited("a red apple"), atol=1e-2)


def test_and_adds_the_differences_of_its_prompts(pipe: LatentDiffusionPipeline) -> None:
    """At weight 0.5 each, two equal prompts are one; a prompt of weight 0 adds nothing; all three differ from both."""
    one, joined = pipe("a cat", **CALL).images, pipe("a cat :0.5 AND a cat :0.5", **CALL).images
    assert torch.allclose(one, joined, atol=1e-5)
    assert torch.allclose(one, pipe("a cat AND 猫 :0", **CALL).images, atol=1e-5)
    assert not torch.allclose(one, pipe("a cat AND 猫", **CALL).images, atol=1e-2)
    without = [pipe(text, guidance_scale=1.0, **CALL).images for text in ("a cat", "a cat :0.5 AND a cat :0.5")]
    assert torch.allclose(*without, atol=1e-5)


def test_the_approximation_that_reuses_features_follows_a_changing_prompt(model_folder: Path) -> None:
    settings = {"device": "cpu", "dtype": "float32"}
    pipes = [LatentDiffusionPipeline.from_pretrained(model_folder, approximate=a, **settings) for a in ((), ("reuse",))]
    exact, reused = (pipe(["[a|b|c|d] " + LONG, "猫"], **CALL).images for pipe in pipes)
    assert torch.allclose(exact[0], reused[0], atol=1e-4)  # every step has another prompt, so nothing is reused


def test_prompt_2_and_clip_skip_change_the_image_and_are_checked(
    xl_folder: Path, pipe: LatentDiffusionPipeline
) -> None:
    xl = LatentDiffusionPipeline.from_pretrained(xl_folder, device="cpu", dtype="float32")
    plain, same, other = (xl("a cat", prompt_2=second, **CALL).images for second in (None, "a cat", "猫"))
    assert torch.equal(plain, same) and not torch.allclose(plain, other, atol=1e-2)
    assert not torch.allclose(pipe("a cat", **CALL).images, pipe("a cat", clip_skip=1, **CALL).images, atol=1e-2)
    with pytest.raises(InputError, match="prompt_2 is for models with two text encoders and this one has 1"):
        pipe("a cat", prompt_2="猫")
    with pytest.raises(InputError, match="clip_skip=2 must be from 0 to 1 for this model"):
        pipe("a cat", clip_skip=2)


def test_plain_prompts_are_read_as_text(pipe: LatentDiffusionPipeline) -> None:
    row = pipe.start(read_inputs(pipe.limits, "(a) [b|c]", prompt_syntax="plain"))[0]
    expected = PromptConditioning.constant(pipe.text.encode(["(a) [b|c]"])).at(0).hidden
    assert torch.equal(row.positive[0].at(0).hidden, expected)


def test_long_prompts_are_not_truncated(pipe: LatentDiffusionPipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(LONG * 3, num_inference_steps=1)


def test_lora_tags_set_weights_for_one_call(model_folder: Path, tmp_path: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    before = pipe("a cat", **CALL).images
    pipe.load_lora(trained(model_folder, tmp_path / "one", 1), "one", 0.0)
    pipe.load_lora(trained(model_folder, tmp_path / "two", 2), "two", 0.5)
    without_tag = pipe("a cat", **CALL).images
    tagged = pipe("a cat <lora:one:0.25:0.75>", **CALL).images
    assert pipe.adapters == {"one": (0.0, 0.0), "two": (0.5, 0.5)}
    pipe.set_adapters({"one": (0.75, 0.25), "two": 0.5})
    assert torch.equal(tagged, pipe("a cat ", **CALL).images) and not torch.equal(tagged, without_tag)
    pipe.unload_lora()
    assert torch.equal(pipe("a cat", **CALL).images, before)
    with pytest.raises(InputError, match="the prompt names <lora:one>, which is not loaded; load it with load_lora"):
        pipe("a cat <lora:one>", **CALL)


def test_a_lora_tag_that_is_unknown_names_those_that_are_loaded(model_folder: Path, tmp_path: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32")
    pipe.load_lora(trained(model_folder, tmp_path / "one", 1), "one", 0.0)
    with pytest.raises(InputError, match="the prompt names <lora:two>, which is not loaded; loaded: one"):
        pipe("a cat <lora:two:0.5>", **CALL)
    with pytest.raises(InputError, match=r"the prompt names <lora:one> at \(0.5, 0.5\); call set_adapters\(\)"):
        pipe.start(read_inputs(pipe.limits, "a cat <lora:one:0.5>"))
