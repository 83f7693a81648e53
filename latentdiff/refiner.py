"""Two models in one run: a base model removes most of the noise, a refiner the rest (Podell et al. 2023, sec. 2.5)."""

from dataclasses import replace
from typing import Any

import torch

from latentdiff.errors import InputError
from latentdiff.inputs.size_conditioning import SCORES, TARGETS
from latentdiff.pipeline import LatentDiffusionPipeline, PipelineOutput
from latentdiff.sampling.wrapped_denoiser import parse_axes
from latentdiff.text.prompt_syntax import take_lora_tags

SWITCH = 0.8
# Arguments that belong to the start of a run, to its end, or to the base model's second text encoder.
BASE_ONLY = (
    *TARGETS, "image", "strength", "edit", "height", "width", "latents", "generator", "num_images_per_prompt",
    "prompt_2", "negative_prompt_2", "variation_seed", "variation_strength",
)  # fmt: skip


def generate_refined(
    pipe: LatentDiffusionPipeline, refiner: LatentDiffusionPipeline, switch: float = SWITCH, **arguments: Any
) -> PipelineOutput:
    """Call `pipe` for this fraction of the noise levels and `refiner` for the rest; the VAE of `pipe` decodes.

    arguments: of a call, with the aesthetic scores of the refiner. The refiner reads the first prompt without its LoRA
    tags, and draws the noise that the base model would have drawn. Raises InputError for models whose latents or noise
    levels differ, and for arguments that cannot be used.
    """
    _check_pair(pipe, refiner)
    if not 0 < switch < 1:
        raise InputError(f"refiner_switch={switch:g} (--refiner-switch) must be between 0 and 1; try {SWITCH}")
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
    axes = parse_axes(arguments.get("seamless") or "")
    return replace(first, images=pipe.finish(latents, output_type, axes=axes), stopped=stopped)


def _sampling(pipe: LatentDiffusionPipeline, arguments: dict[str, Any]) -> dict[str, Any]:
    """The settings that both models share, which are the base model's where none are given."""
    settings = pipe.generation.model_dump() | {"spacing": pipe.schedule.config.timestep_spacing}
    settings |= {name: value for name, value in arguments.items() if name in settings and value is not None}
    if settings["sampler"] == "lcm" and arguments.get("spacing") is None:
        settings["spacing"] = None  # which has levels of its own
    return settings


def _texts(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """The prompts and negative prompts of the refiner, one for each of `count` images."""
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
        raise InputError("a refiner does not go with checkpoints that read an image; use text-to-image models")
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
