"""Editing in pixel space: fit an input image and its mask to the output, crop, and paste the result back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from latentdiff.errors import InputError, did_you_mean
from latentdiff.images.fit import EDGES, FITS, Fit, fit_to, pad
from latentdiff.images.masks import Box, binary, check_mask, crop_around, fill_from_surroundings, grow, soft_edge
from latentdiff.images.reading import to_tensor

Fill = Literal["original", "noise", "blur"]
FILLS = ("original", "noise", "blur")
MAX_SIDE = 8192  # pixels of an output that has the size of the input


@dataclass(frozen=True)
class EditOptions:
    """Options for an input image and its mask.

    fit: how the image is fitted to the output size, see `fit_to`. extend: pixels to add at the edges (outpainting),
    for example {"left": 64}. mask_grow: pixels to enlarge the mask by. mask_blur: standard deviation in pixels of its
    soft edge. mask_fill: initial content of the masked area: its own pixels, noise, or a smooth continuation of the
    surroundings. only_masked: repaint only the masked area, with this many pixels around it, at the model's size.
    paste_back: restore the input's pixels where the soft mask is 0. image_guidance_scale: the image guidance of
    InstructPix2Pix. Raises InputError.
    """

    fit: Fit = "cover"
    extend: Mapping[str, int] = field(default_factory=dict)
    mask_grow: int = 0
    mask_blur: float = 4.0
    mask_fill: Fill = "original"
    only_masked: int | None = None
    paste_back: bool = True
    image_guidance_scale: float = 1.5

    def __post_init__(self) -> None:
        for name, value, known in (("fit", self.fit, FITS), ("mask_fill", self.mask_fill, FILLS)):
            if value not in known:
                raise InputError(f"{name}={value!r} is unknown; {did_you_mean(str(value), known)}")
        for edge, pixels in self.extend.items():
            if edge not in EDGES:
                raise InputError(f"extend={edge!r} is not an edge; {did_you_mean(edge, EDGES)}")
            _within(f"extend {edge}", pixels, MAX_SIDE)
        if self.extend and not any(self.extend.values()):
            raise InputError(f"extend={dict(self.extend)} adds no pixels; pass a larger number, or omit it")
        for name, limit in (("mask_grow", 1024), ("mask_blur", 256), ("image_guidance_scale", 100)):
            _within(name, getattr(self, name), limit)
        if self.only_masked is not None:
            _within("only_masked", self.only_masked, MAX_SIDE)


def _within(name: str, value: Any, limit: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
        raise InputError(f"{name}={value!r} must be a number from 0 to {limit}; try 8")


@dataclass(frozen=True, eq=False)
class Canvas:
    """An input image at the output size, and the part of it to repaint.

    mask: black and white, at the output size. edge: the mask with a soft edge. box: the part that is sampled; None for
    the complete image. size: width and height at which it is sampled. latents: scaled latents [C, h, w], if the input
    is given as latents; `image` is then blank.
    """

    image: Image.Image
    size: tuple[int, int]
    mask: Image.Image | None = None
    edge: Image.Image | None = None
    box: Box | None = None
    blur_fill: bool = False
    noise_fill: bool = False
    paste_back: bool = True
    latents: Tensor | None = None

    def pixels(self) -> Tensor:
        """The pixels to encode, float32 [3, h, w] in [-1, 1]."""
        part = self.image if self.box is None else self.image.resize(self.size, Image.Resampling.LANCZOS, self.box)
        pixels = to_tensor(part) * 2 - 1
        return fill_from_surroundings(pixels, self.mask_pixels()) if self.blur_fill else pixels

    def mask_pixels(self) -> Tensor:
        """The mask at the sampled size, float32 [1, h, w]: 1 where the image is repainted."""
        assert self.mask is not None
        if self.box is None:
            return to_tensor(self.mask)
        return to_tensor(binary(self.mask.resize(self.size, Image.Resampling.BILINEAR, self.box)))

    def paste(self, painted: Image.Image) -> Image.Image:
        """Combine the decoded image with the input's pixels, as the options require; returns the output."""
        if self.box is not None:
            left, top, right, bottom = self.box
            complete = self.image.copy()
            complete.paste(painted.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
            painted = complete
        if self.edge is None or not (self.paste_back or self.box):
            return painted
        return Image.composite(painted, self.image, self.edge)


def make_canvas(
    image: Image.Image,
    mask: Image.Image | None,
    size: tuple[int | None, int | None],
    options: EditOptions,
    multiple: int,
    default_side: int,
) -> Canvas:
    """Prepare an input image and its mask.

    size: width and height; a side of None is the image's, rounded down to a multiple, or with `only_masked` the default
    side. Raises InputError.
    """
    if mask is not None:
        mask = check_mask(mask, image)
    if any(options.extend.values()):
        image, mask = extend(image, mask, options.extend)
    if options.only_masked is not None:
        return _masked_canvas(image, mask, (size[0] or default_side, size[1] or default_side), options)
    width, height = (given or _own_side(own, multiple) for given, own in zip(size, image.size, strict=True))
    image = fit_to(image, (width, height), options.fit)
    if mask is None:
        return Canvas(image, (width, height))
    mask = grow(_mask_at(mask, (width, height), options.fit), options.mask_grow)
    return Canvas(image, (width, height), mask, soft_edge(mask, options.mask_blur), None, *_fills(options))


def _own_side(own: int, multiple: int) -> int:
    if own > MAX_SIDE:
        raise InputError(f"the image has a side of {own} pixels, more than {MAX_SIDE}; pass height= and width=")
    return max(own // multiple, 1) * multiple


def _mask_at(mask: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    found = binary(fit_to(mask, size, fit))
    if found.getbbox() is None:
        raise InputError(f"mask_image has no white area at {size[0]}x{size[1]}; enlarge it with mask_grow")
    return found


def _masked_canvas(image: Image.Image, mask: Image.Image | None, size: tuple[int, int], options: EditOptions) -> Canvas:
    if mask is None:
        raise InputError(f"only_masked={options.only_masked} requires a mask; pass mask_image= (--mask)")
    mask = grow(mask, options.mask_grow)
    edge = soft_edge(mask, options.mask_blur)
    box = crop_around(edge, math.ceil(options.only_masked or 0), size[0] / size[1])
    return Canvas(image, size, mask, edge, box, *_fills(options))


def _fills(options: EditOptions) -> tuple[bool, bool, bool]:
    return options.mask_fill == "blur", options.mask_fill == "noise", options.paste_back


def extend(image: Image.Image, mask: Image.Image | None, edges: Mapping[str, int]) -> tuple[Image.Image, Image.Image]:
    """Enlarge an image for outpainting; returns it, and a mask of the new area and the masked area."""
    around = {edge: int(pixels) for edge, pixels in edges.items()}
    inner = Image.new("L", image.size, 0) if mask is None else mask
    wider = pad(image, **around)
    new = Image.new("L", wider.size, 255)
    new.paste(inner, (around.get("left", 0), around.get("top", 0)))
    return wider, new


def per_image(images: Sequence[Any], prompts: int, name: str) -> list[Any]:
    """Repeat a single image for every prompt. Raises InputError unless there is one image, or one per prompt."""
    if len(images) not in (1, prompts):
        raise InputError(f"{name} has {len(images)} images for {prompts} prompts; pass one, or one per prompt")
    return list(images) * (prompts if len(images) == 1 else 1)
