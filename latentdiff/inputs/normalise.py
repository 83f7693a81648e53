"""Normalise pipeline arguments to one prompt, negative prompt and seed per image."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from latentdiff.denoiser import Guidance
from latentdiff.errors import InputError, check_integer, check_number, shorten
from latentdiff.images.edit import Canvas, EditOptions
from latentdiff.inputs.canvases import ImageInputs, check_effects, input_images, make_canvases, spread
from latentdiff.inputs.model_limits import ModelLimits, Task
from latentdiff.inputs.prompts import ImagePrompts, prompts_per_image, read_options, sources_per_image
from latentdiff.inputs.size_conditioning import read_sizes
from latentdiff.sampling.denoising_range import part_of
from latentdiff.sampling.inversion import check_invertible
from latentdiff.sampling.samplers import Plan, plan
from latentdiff.sampling.seamless import parse_axes
from latentdiff.sampling.seeds import seeds_per_image
from latentdiff.sampling.variations import Variation, read_variation

STRENGTH = 0.8  # the default of image to image; that of inpainting is 1


@dataclass(frozen=True)
class Inputs:
    """The validated arguments of a call. prompts, seeds: one per image.

    latents: initial noise [B, C, h, w]; None draws it. guidance: None samples without guidance. canvases: the input
    images, one per output; None generates from noise alone. tile: side in latents of the tiles that are evaluated.
    seamless: the axes along which opposite edges match. variation: the noise to mix into the initial noise. sources:
    descriptions of the input images, for their inversion; None adds noise to the images instead. time_ids: the numbers
    that SDXL reads, for prompts and for negative prompts. timesteps: those of the complete run, of which the plan may
    be a part. draws_before: if another model ran the steps before the plan, how often each generator drew noise in
    them. omitted: the number of steps that strength skips before the first of `timesteps`.
    """

    prompts: ImagePrompts
    seeds: list[int]
    height: int
    width: int
    plan: Plan
    guidance: Guidance | None
    latents: Tensor | None
    canvases: list[Canvas] | None = None
    strength: float = 1.0
    tile: int | None = None
    seamless: str = ""
    variation: Variation | None = None
    sources: ImagePrompts | None = None
    time_ids: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    timesteps: Sequence[float] = ()
    omitted: int = 0
    draws_before: int | None = None

    @property
    def drawn_from(self) -> list[int]:
        """The seeds, if any noise is drawn from them."""
        draws_start = self.latents is None and self.draws_before is None
        draws = draws_start or any(update.noise for update in self.plan.table)
        return self.seeds if draws else []

    @property
    def varied_by(self) -> list[int]:
        """The seeds of the noise that is mixed in; empty without a variation."""
        return self.variation.seeds if self.variation else []


def read_inputs(
    model: ModelLimits,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    height: int | None = None,
    width: int | None = None,
    num_images_per_prompt: int = 1,
    seed: int | Sequence[int] | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    eta: float = 0.0,
    latents: Tensor | None = None,
    image: ImageInputs | None = None,
    mask_image: ImageInputs | None = None,
    strength: float | None = None,
    edit: EditOptions | None = None,
    prompt_2: str | Sequence[str] | None = None,
    negative_prompt_2: str | Sequence[str] | None = None,
    prompt_syntax: str = "a1111",
    clip_skip: int | None = None,
    tile: int | None = None,
    seamless: str | None = None,
    variation_seed: int | Sequence[int] | None = None,
    variation_strength: float | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
    sizes: Mapping[str, Any] | None = None,
    source_prompt: str | Sequence[str] | None = None,
) -> Inputs:
    """Validate the arguments of `LatentDiffusionPipeline.__call__`. Raises InputError."""
    images = None if image is None else input_images(image, model.latent_channels)
    times = check_integer(num_images_per_prompt, "num_images_per_prompt", 1)
    options = read_options(prompt_syntax, check_integer(clip_skip or 0, "clip_skip"), model.max_clip_skip)
    others = {"negative_prompt": negative_prompt, "prompt_2": prompt_2, "negative_prompt_2": negative_prompt_2}
    prompts = prompts_per_image(spread(prompt, images), others, times, options, model.text_encoders)
    count, defaults, sources = len(prompts.positives), model.generation, None
    sides = _side(width, "width", model), _side(height, "height", model)
    canvases = make_canvases(images, mask_image, strength, edit, sides, count, times, model, denoising_start)
    starts = {"strength": strength, "latents": latents, "variation_strength": variation_strength}
    masked = canvases is not None and canvases[0].mask is not None
    _check_range(denoising_start, denoising_end, starts, masked, model)
    if canvases is not None:
        sides = canvases[0].size
    width, height = (model.default_size if side is None else side for side in sides)
    if latents is not None:
        shape = (count, model.latent_channels, height // model.downscale, width // model.downscale)
        latents = check_latents(latents, shape)
    if source_prompt is not None:
        _refuse_channels("source_prompt", model)
        sampler, strength = sampler or "ddim", 1.0 if strength is None else strength
        extended = True if masked and mask_image is None else None
        excluded = {
            "mask_image": mask_image,
            "extend": extended,
            "latents": latents,
            "variation_strength": variation_strength,
        }
        excluded |= {"denoising_start": denoising_start, "denoising_end": denoising_end}
        check_invertible(sampler, eta, images is not None, excluded)
        sources = sources_per_image(source_prompt, prompts, times, model.text_encoders)
    strength = 1.0 if denoising_start is not None else _strength(strength, canvases, model.task)
    guidance = _guidance(guidance_scale, guidance_interval, edit, model)
    if canvases is not None and edit is not None:
        check_effects(edit, canvases[0], strength, guidance is not None, model)
    variation = read_variation(variation_seed, variation_strength, count, latents)
    steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
    steps = check_integer(steps, "num_inference_steps")
    omitted = steps - int(steps * strength)
    plan_without = partial(plan, model.schedule, sampler or defaults.sampler, steps, eta, spacing)
    complete, used = _plans(plan_without, omitted, denoising_start, denoising_end, model)
    return Inputs(
        prompts=prompts,
        seeds=seeds_per_image(seed, count, step=0 if variation else 1),
        height=height,
        width=width,
        plan=used,
        guidance=guidance,
        latents=latents,
        canvases=canvases,
        strength=strength,
        tile=_tile(tile, model),
        seamless=_seamless(seamless, model),
        variation=variation,
        sources=sources,
        time_ids=read_sizes(sizes or {}, model.size_numbers).time_ids((height, width), model.size_numbers),
        timesteps=complete.timesteps,
        omitted=omitted,
        draws_before=None if denoising_start is None else _draws_before(complete, used),
    )


def _plans(
    plan_without: Callable[[int], Plan], omitted: int, start: float | None, end: float | None, model: ModelLimits
) -> tuple[Plan, Plan]:
    """The plan without its first `omitted` steps, and the part of it between denoising_start and denoising_end."""
    complete = plan_without(omitted)
    if start is None and end is None:
        return complete, complete
    return complete, part_of(complete, plan_without, model.schedule.config.num_train_timesteps, start, end)


def _draws_before(complete: Plan, used: Plan) -> int:
    """How often a generator draws noise in the steps of `complete` that precede `used`."""
    first = complete.timesteps.index(used.timesteps[0])
    return sum(bool(update.noise) for update in complete.table[:first])


def _check_range(
    start: float | None,
    end: float | None,
    starts: Mapping[str, Any],
    masked: bool,
    model: ModelLimits,
) -> None:
    """Raise InputError for arguments that cannot be combined with denoising_start or denoising_end.

    starts: other arguments that set where sampling starts.
    """
    name = "denoising_end" if start is None else "denoising_start"
    if start is None and end is None:
        return
    if model.task != "generate" or masked:
        raise InputError(f"{name}= and refiners cannot be used with a mask, extend or a checkpoint that reads an image")
    if start is not None and (given := [name for name, value in starts.items() if value is not None]):
        raise InputError(f"{given[0]}= and denoising_start= both set where sampling starts; omit one of them")


def check_latents(latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Convert to float32. Raises InputError for another shape."""
    if latents.shape != shape:
        raise InputError(f"latents= has shape {list(latents.shape)}, which must be {list(shape)}; use torch.randn")
    return latents.float()


def _side(value: int | None, name: str, model: ModelLimits) -> int | None:
    if value is None:
        return None
    factor, side = model.downscale, check_integer(value, name, model.downscale)
    if side % factor:
        low = side // factor * factor
        raise InputError(f"{name}={side} must be a multiple of {factor}; try {low} or {low + factor}")
    return side


def _guidance(
    scale: float | None, interval: tuple[float, float], edit: EditOptions | None, model: ModelLimits
) -> Guidance | None:
    """None for a scale of 1 or less, which means no guidance, as in diffusers. edit: has InstructPix2Pix's scale."""
    scale = model.generation.guidance_scale if scale is None else check_number(scale, "guidance_scale")
    if not math.isfinite(scale):
        raise InputError(f"guidance_scale={scale} must be a finite number; try {model.generation.guidance_scale:g}")
    if len(interval) != 2:
        raise InputError(f"guidance_interval={shorten(interval)} must be two numbers; try 0.2, 0.8")
    low, high = (check_number(value, "guidance_interval") for value in interval)
    if not 0 <= low <= high <= 1:
        raise InputError(f"guidance_interval={low}, {high} must increase within 0 and 1; try 0.2, 0.8")
    if scale <= 1 and (low, high) != (0, 1):
        raise InputError(f"guidance_interval={low}, {high} has no effect at guidance_scale={scale:g}; omit one of them")
    total = model.schedule.config.num_train_timesteps
    image_scale = (edit or EditOptions()).image_guidance_scale if model.task == "edit" else 1.0
    return Guidance(scale, low * total, high * total, image_scale) if scale > 1 else None


def _tile(tile: int | None, model: ModelLimits) -> int | None:
    """The side of a tile in latents. Raises InputError."""
    if tile is None:
        return None
    _refuse_channels("tile", model)
    side = check_integer(tile, "tile", 8 * model.downscale)
    if side % model.downscale:
        raise InputError(f"tile={side} must be a multiple of {model.downscale}; try {model.default_size}")
    return side // model.downscale


def _seamless(axes: str | None, model: ModelLimits) -> str:
    if not axes:
        return ""
    _refuse_channels("seamless", model)
    return parse_axes(axes)


def _refuse_channels(name: str, model: ModelLimits) -> None:
    if model.task != "generate":
        raise InputError(f"{name}= cannot be used with a checkpoint that reads an image; use a text-to-image model")


def _strength(strength: float | None, canvases: list[Canvas] | None, task: Task) -> float:
    """The fraction of the steps to run; 1 without an input image. Raises InputError."""
    if canvases is None or task == "edit":
        if strength is not None:
            raise InputError("strength= is not used by image-editing checkpoints; see EditOptions.image_guidance_scale")
        return 1.0
    if strength is None:
        return STRENGTH if canvases[0].mask is None else 1.0
    if not 0 <= check_number(strength, "strength") <= 1:
        raise InputError(f"strength={strength} must be from 0, which keeps the image, to 1, which ignores it; try 0.6")
    return float(strength)
