"""Pair the input images and masks of a call with its output images, one `Canvas` of the output's size for each."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from latentdiff.errors import InputError
from latentdiff.images.edit import Canvas, EditOptions, make_canvas, per_image
from latentdiff.images.reading import ImageInput, read_images, read_masks
from latentdiff.inputs.model_limits import ModelLimits

ImageInputs = ImageInput | Sequence[ImageInput]


def input_images(image: ImageInputs, latent_channels: int) -> list[Any]:
    """Read input images as PIL images; tensors with the channels of the latents are returned as latents [C, h, w]."""
    parts = list(image) if isinstance(image, Tensor) and image.ndim == 4 else image
    is_latents = isinstance(parts, list) and all(isinstance(one, Tensor) and one.ndim == 3 for one in parts)
    if is_latents and latent_channels not in (1, 3) and {len(one) for one in parts} == {latent_channels}:  # type: ignore[arg-type, union-attr]
        return list(parts)  # type: ignore[arg-type]
    return read_images(image)


def spread(prompt: str | Sequence[str], images: Sequence[Any] | None) -> str | Sequence[str]:
    """Repeat a single prompt for each of several input images."""
    return [prompt] * len(images) if isinstance(prompt, str) and images is not None and len(images) > 1 else prompt


def make_canvases(
    images: list[Any] | None,
    mask_image: ImageInputs | None,
    strength: float | None,
    edit: EditOptions | None,
    sides: tuple[int | None, int | None],
    count: int,
    times: int,
    model: ModelLimits,
    denoising_start: float | None = None,
) -> list[Canvas] | None:
    """One canvas per output image, all of one size; outputs with the same image and mask share a canvas."""
    if model.task != "generate" and (images is None or (mask_image is None) == (model.task == "inpaint")):
        needs = (
            "image= and mask_image= (--image, --mask)"
            if model.task == "inpaint"
            else "image= without mask_image= (--image)"
        )
        kind = "an inpainting" if model.task == "inpaint" else "an image-editing"
        raise InputError(f"this is {kind} checkpoint; pass {needs}, or use a text-to-image model")
    if images is None:
        unused = {"mask_image": mask_image, "strength": strength, "edit": edit}
        unused["denoising_start"] = denoising_start
        if given := [name for name, value in unused.items() if value is not None]:
            raise InputError(f"{given[0]}= requires an input image; pass image= (--image), or omit it")
        return None
    masks = [None] if mask_image is None else read_masks(mask_image)
    if isinstance(images[0], Tensor):
        return _latent_canvases(images, mask_image, edit, sides, count, times, model)
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
    latents: list[Tensor],
    mask: Any,
    edit: EditOptions | None,
    sides: tuple[int | None, int | None],
    count: int,
    times: int,
    model: ModelLimits,
) -> list[Canvas]:
    """Canvases for input images given as scaled latents, at their own size."""
    if mask is not None or edit is not None:
        raise InputError("mask_image= and edit= cannot be used with latents as image=; pass an image instead")
    height, width = (model.downscale * side for side in latents[0].shape[-2:])
    for name, side, own in (("width", sides[0], width), ("height", sides[1], height)):
        if side not in (None, own):
            raise InputError(f"{name}={side} is not that of the latents in image=, {own}; omit it")
    blank = Image.new("RGB", (width, height))
    made = [Canvas(blank, (width, height), latents=one.float()) for one in latents]
    return [canvas for canvas in per_image(made, count // times, "image") for _ in range(times)]


def check_effects(edit: EditOptions, canvas: Canvas, strength: float, guided: bool, model: ModelLimits) -> None:
    """Raise InputError for an option that is not the default and would have no effect."""
    edits = model.task == "edit"
    needs_mask = None if canvas.mask is not None else "requires a mask; pass mask_image= (--mask) or extend"
    excluded = None if edit.only_masked is None else "has no effect with only_masked; omit one of them"
    reasons = {
        "image_guidance_scale": None if edits and guided else "requires an InstructPix2Pix model and guidance above 1",
        "extend": "cannot be used with an image-editing checkpoint; use a text-to-image model" if edits else None,
        "mask_grow": needs_mask,
        "mask_blur": needs_mask,
        "mask_fill": needs_mask or (None if strength < 1 else "has no effect at strength 1; try strength=0.8"),
        "paste_back": needs_mask or excluded,
        "fit": excluded,
    }
    defaults = EditOptions()
    for name, reason in reasons.items():
        if reason is not None and (value := getattr(edit, name)) != getattr(defaults, name):
            raise InputError(f"{name}={value!r} {reason}")
