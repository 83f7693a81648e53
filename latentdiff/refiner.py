"""Sample with two models: a base model for the first steps, a refiner for the rest (Podell et al. 2023, sec. 2.5)."""

from dataclasses import replace
from typing import Any

import torch

from latentdiff.errors import InputError
from latentdiff.inputs.size_conditioning import SCORES, TARGETS
from latentdiff.pipeline import LatentDiffusionPipeline, PipelineOutput
from latentdiff.sampling.seamless import parse_axes
from latentdiff.text.prompt_syntax import take_lora_tags

SWITCH = 0.8
# Arguments for the start of a run, for its end, or for the second text encoder of the base model.
BASE_ONLY = (
    *TARGETS, "image", "strength", "edit", "height", "width", "latents", "generator", "num_images_per_prompt",
    "prompt_2", "negative_prompt_2", "variation_seed", "variation_strength",
)  # fmt: skip


def generate_refined(
    pipe: LatentDiffusionPipeline, refiner: LatentDiffusionPipeline, switch: float = SWITCH, **arguments: Any
) -> PipelineOutput:
    """Run the steps before the fraction `switch` with `pipe`, and the others with `refiner`; `pipe` decodes.

    arguments: of a call, including the aesthetic scores for the refiner. The refiner reads `prompt` without LoRA tags,
    and draws the same noise as the base model would. Raises InputError for models with different latents or noise
    schedules, and for invalid arguments.
    """
    _check_pair(pipe, refiner)
    if not 0 < switch < 1:
        raise InputError(f"refiner_switch={switch:g} (--refiner-switch) must be between 0 and 1; try {SWITCH}")
    if arguments.get("source_prompt") is not None:
        raise InputError("source_prompt= (--source-prompt) cannot be combined with a refiner; omit one of them")
    output_type = arguments.pop("output_type", "pil")
    sampling = _sampling(pipe, arguments)
    of_base = {name: value for name, value in arguments.items() if name not in SCORES}
    first = pipe(**of_base | sampling, denoising_end=switch, output_type="latent")
    latents, stopped = first.images, first.stopped
    if not stopped:
        of_refiner = {name: value for name, value in arguments.items() if name not in BASE_ONLY}
        of_refiner |= _texts(arguments, len(latents)) | {"image": latents, "seed": first.seeds or None}
        second = refiner(**of_refiner | sampling, denoising_start=switch, output_type="latent")
        latents, stopped = second.images.to(pipe.device), second.stopped
    axes, tile = parse_axes(arguments.get("seamless") or ""), arguments.get("tile")
    side = None if tile is None else tile // pipe.vae.config.downscale
    return replace(first, images=pipe.finish(latents, output_type, axes=axes, tile=side), stopped=stopped)


def _sampling(pipe: LatentDiffusionPipeline, arguments: dict[str, Any]) -> dict[str, Any]:
    """The sampling settings of both models, with the defaults of the base model."""
    settings = pipe.generation.model_dump() | {"spacing": pipe.schedule.config.timestep_spacing}
    settings |= {name: value for name, value in arguments.items() if name in settings and value is not None}
    if settings["sampler"] == "lcm" and arguments.get("spacing") is None:
        settings["spacing"] = None  # LCM has its own levels
    return settings


def _texts(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """The prompts and negative prompts of the refiner, one per image."""
    found: dict[str, Any] = {}
    for name in ("prompt", "negative_prompt"):
        texts = arguments.get(name)
        if texts is None:
            continue
        many = [texts] if isinstance(texts, str) else list(texts)
        if arguments.get("prompt_syntax", "a1111") == "a1111" and name == "prompt":
            many = [take_lora_tags(text)[0] for text in many]
        found[name] = [text for text in many for _ in range(count // len(many))]
    return found


def _check_pair(pipe: LatentDiffusionPipeline, refiner: LatentDiffusionPipeline) -> None:
    """Raise InputError unless both models denoise the same latents by the same schedule."""
    if {pipe.task, refiner.task} != {"generate"}:
        raise InputError("a refiner cannot be combined with a checkpoint that reads an image; use text-to-image models")
    base, other = pipe.vae.config, refiner.vae.config
    facts = {
        "the number of latent channels": (pipe.denoiser.latent_channels, refiner.denoiser.latent_channels),
        "pixels per latent": (base.downscale, other.downscale),
        "the scale of latents": (base.scaling_factor, other.scaling_factor),
    }
    for what, (ours, theirs) in facts.items():
        if ours != theirs:
            raise InputError(
                f"the refiner and the model differ in {what} ({theirs:g} and {ours:g}); use one of the same family"
            )
    if not torch.equal(pipe.schedule.alphas, refiner.schedule.alphas):
        raise InputError("the refiner's noise schedule differs from the model's; use a refiner of the same family")
