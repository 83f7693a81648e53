"""Normalise pipeline arguments to one prompt, negative prompt and seed per image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from latentdiff.config.model import GenerationConfig
from latentdiff.denoiser import Guidance
from latentdiff.errors import InputError
from latentdiff.images.edit import Canvas, EditOptions, make_canvas, per_image
from latentdiff.images.reading import ImageInput, read_images, read_masks
from latentdiff.samplers import Plan, plan
from latentdiff.schedule import Schedule
from latentdiff.seeds import seeds_per_image, whole
from latentdiff.text.prompt_inputs import ImagePrompts, read_options, read_prompts
from latentdiff.variations import Variation, read_variation
from latentdiff.wrapped_denoiser import parse_axes

STRENGTH = 0.8  # of image to image, where a call names none; inpainting's is 1

Task = Literal["generate", "inpaint", "edit"]
"""What a network reads beside latents: nothing, a mask and the masked image, or the image (InstructPix2Pix)."""
ImageInputs = ImageInput | Sequence[ImageInput]


@dataclass(frozen=True)
class ModelLimits:
    """What arguments depend on: the schedule and usual settings of a model, its latents' channels, and sizes in pixels.

    downscale: pixels per latent along each side; sides are multiples of it. default_size: pixels a side. text_encoders:
    how many. max_clip_skip: of their layers.
    """

    schedule: Schedule
    generation: GenerationConfig
    latent_channels: int
    downscale: int
    default_size: int
    task: Task = "generate"
    text_encoders: int = 1
    max_clip_skip: int = 0


@dataclass(frozen=True)
class Inputs:
    """A checked call. prompts and seeds: one per image.

    latents: [B, C, h, w] to start from, None to draw them. guidance: None samples without. canvases: the edited images,
    one per output; None makes images from noise. tile: latents a side of the parts that are evaluated. seamless: axes
    along which opposite edges fit. variation: noise that is mixed into the noise that the images start from.
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

    @property
    def drawn_from(self) -> list[int]:
        """The seeds of the images whose noise depends on them."""
        draws = self.latents is None or any(update.noise for update in self.plan.table)
        return self.seeds if draws else []

    @property
    def varied_by(self) -> list[int]:
        """The seeds of the noise that is mixed in."""
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
) -> Inputs:
    """Check the arguments of a pipeline call. Raises InputError, which names the value, the rule and what to do."""
    images = None if image is None else input_images(image, model.latent_channels)
    texts = texts_per_image(spread(prompt, images), "prompt", num_images_per_prompt)
    others = (negative_prompt, "negative_prompt"), (prompt_2, "prompt_2"), (negative_prompt_2, "negative_prompt_2")
    negatives, seconds, negative_seconds = (
        texts_beside(value, name, len(texts), num_images_per_prompt) for value, name in others
    )
    options = read_options(prompt_syntax, whole(clip_skip or 0, "clip_skip"), model.max_clip_skip)
    sides = _side(width, "width", model), _side(height, "height", model)
    canvases = _canvases(images, mask_image, strength, edit, sides, len(texts), num_images_per_prompt, model)
    if canvases is not None:
        sides = canvases[0].size
    width, height = (model.default_size if side is None else side for side in sides)
    usual = model.generation
    steps = usual.num_inference_steps if num_inference_steps is None else num_inference_steps
    steps = whole(steps, "num_inference_steps")
    scale = usual.guidance_scale if guidance_scale is None else guidance_scale
    if latents is not None:
        shape = (len(texts), model.latent_channels, height // model.downscale, width // model.downscale)
        latents = check_latents(latents, shape)
    strength = _strength(strength, canvases, model.task)
    guidance = _guidance(scale, guidance_interval, model)
    if guidance is not None and model.task == "edit":
        guidance = replace(guidance, image_scale=(edit or EditOptions()).image_guidance_scale)
    variation = read_variation(variation_seed, variation_strength, len(texts), latents)
    return Inputs(
        read_prompts(texts, negatives, seconds, negative_seconds, options, model.text_encoders),
        seeds_per_image(seed, len(texts), step=0 if variation else 1),
        height,
        width,
        plan(model.schedule, sampler or usual.sampler, steps, eta, spacing, skip=steps - int(steps * strength)),
        guidance,
        latents,
        canvases,
        strength,
        _tile(tile, model),
        _seamless(seamless, model),
        variation,
    )


def input_images(image: ImageInputs, latent_channels: int) -> list[Any]:
    """PIL images, or the latents [C, h, w] of a batch that is given as tensors of as many channels."""
    parts = list(image) if isinstance(image, Tensor) and image.ndim == 4 else image
    is_latents = isinstance(parts, list) and all(isinstance(one, Tensor) and one.ndim == 3 for one in parts)
    if is_latents and latent_channels not in (1, 3) and {len(one) for one in parts} == {latent_channels}:  # type: ignore[arg-type, union-attr]
        return list(parts)  # type: ignore[arg-type]
    return read_images(image)


def spread(prompt: str | Sequence[str], images: Sequence[Any] | None) -> str | Sequence[str]:
    """One prompt for several images is a prompt for each of them."""
    return [prompt] * len(images) if isinstance(prompt, str) and images is not None and len(images) > 1 else prompt


def texts_per_image(prompt: str | Sequence[str], name: str, times: int) -> list[str]:
    """The text of each image. Raises InputError when there is none, and for anything that is not a string."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError(f"{name}={prompts!r} is empty; give at least one")
    for value in prompts:
        if not isinstance(value, str):
            raise InputError(f"{name} holds {value!r}, which is not a string; give strings")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"{name}={ascii(value)[:80]} holds half a surrogate pair, which is not text; remove it")
    times = whole(times, "num_images_per_prompt", 1)
    return [value for value in prompts for _ in range(times)]


def texts_beside(value: str | Sequence[str] | None, name: str, count: int, times: int) -> list[str | None]:
    """A further text for each of `count` images. Raises InputError when there are not as many as prompts."""
    if value is None:
        return [None] * count
    texts: list[str | None] = [*texts_per_image(value, name, times)]
    if isinstance(value, str):
        return texts[:1] * count
    if len(texts) != count:
        raise InputError(f"{name} has {len(texts) // times} texts for {count // times} prompts; give as many")
    return texts


def check_latents(latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """float32. Raises InputError for another shape."""
    if latents.shape != shape:
        raise InputError(f"latents are {list(latents.shape)} and must be {list(shape)}; draw them with torch.randn")
    return latents.float()


def _side(value: int | None, name: str, model: ModelLimits) -> int | None:
    if value is None:
        return None
    factor, side = model.downscale, whole(value, name, 1)
    if side % factor:
        low = max(factor, side // factor * factor)
        raise InputError(f"{name}={side} must be a multiple of {factor}; try {low} or {low + factor}")
    return side


def _guidance(scale: float, interval: tuple[float, float], model: ModelLimits) -> Guidance | None:
    """None for a scale of 1 or less, which means no guidance, as in diffusers."""
    if not math.isfinite(scale):
        raise InputError(f"guidance_scale={scale} must be a finite number; try {model.generation.guidance_scale:g}")
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise InputError(f"guidance_interval={low}, {high} must rise within 0 and 1; try 0.2, 0.8")
    total = model.schedule.config.num_train_timesteps
    return Guidance(scale, low * total, high * total) if scale > 1 else None


def _tile(tile: int | None, model: ModelLimits) -> int | None:
    """In latents. Raises InputError."""
    if tile is None:
        return None
    _refuse_channels("tile", model)
    side = whole(tile, "tile", 8 * model.downscale)
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
        raise InputError(f"{name}= is not for checkpoints that read an image; use a text-to-image model")


def _canvases(
    images: list[Any] | None,
    mask_image: ImageInputs | None,
    strength: float | None,
    edit: EditOptions | None,
    sides: tuple[int | None, int | None],
    count: int,
    times: int,
    model: ModelLimits,
) -> list[Canvas] | None:
    """One canvas per output, of one size; outputs of the same image and mask share one."""
    if model.task != "generate" and (images is None or (mask_image is None) == (model.task == "inpaint")):
        needs = "image= and mask_image=" if model.task == "inpaint" else "image= without mask_image="
        kind = "an inpainting" if model.task == "inpaint" else "an image-editing"
        raise InputError(f"this is {kind} checkpoint; pass {needs}, or use a text-to-image model")
    if images is None:
        unused = {"mask_image": mask_image, "strength": strength, "edit": edit}
        if given := [name for name, value in unused.items() if value is not None]:
            raise InputError(f"{given[0]}= is only used with an input image; pass image= (--image), or leave it out")
        return None
    masks = [None] if mask_image is None else read_masks(mask_image)
    if isinstance(images[0], Tensor):
        return _latent_canvases(images, mask_image, edit, count, times, model)
    prompts = count // times
    pairs = zip(per_image(images, prompts, "image"), per_image(masks, prompts, "mask_image"), strict=True)
    made: dict[tuple[int, int], Canvas] = {}
    canvases: list[Canvas] = []
    for image, mask in pairs:
        key = id(image), id(mask)
        if key not in made:
            size = canvases[0].size if canvases else sides
            made[key] = make_canvas(image, mask, size, edit or EditOptions(), model.downscale, model.default_size)
        canvases.append(made[key])
    return [canvas for canvas in canvases for _ in range(times)]


def _latent_canvases(
    latents: list[Tensor], mask: Any, edit: EditOptions | None, count: int, times: int, model: ModelLimits
) -> list[Canvas]:
    """Canvases of images that are given as scaled latents, at their own size."""
    if mask is not None or edit is not None:
        raise InputError("image= is a tensor of latents, which take no mask_image= and edit=; give an image")
    height, width = (model.downscale * side for side in latents[0].shape[-2:])
    blank = Image.new("RGB", (width, height))
    made = [Canvas(blank, (width, height), latents=one.float()) for one in latents]
    return [canvas for canvas in per_image(made, count // times, "image") for _ in range(times)]


def _strength(strength: float | None, canvases: list[Canvas] | None, task: Task) -> float:
    """How much of the plan runs; 1 for images from noise. Raises InputError."""
    if canvases is None or task == "edit":
        if strength is not None:
            raise InputError("strength= is not used by image-editing checkpoints; see EditOptions.image_guidance_scale")
        return 1.0
    if strength is None:
        return STRENGTH if canvases[0].mask is None else 1.0
    if not 0 <= strength <= 1:
        raise InputError(f"strength={strength} must be from 0, which keeps the image, to 1, which ignores it; try 0.6")
    return float(strength)
