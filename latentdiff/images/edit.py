"""What editing does in pixels: the image at the output's size, its mask, the crop to paint, and pasting it back."""

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
MAX_SIDE = 8192  # pixels of an output whose size is that of the input


@dataclass(frozen=True)
class EditOptions:
    """How an image and its mask are used.

    fit: how the image is brought to the output's size, see `fit_to`. extend: pixels to paint beyond edges, as
    {"left": 64}. mask_grow: pixels that the mask grows by. mask_blur: standard deviation in pixels of its soft edge.
    mask_fill: what the masked area starts from, its own pixels, noise, or its surroundings blurred into it.
    only_masked: paint only the masked area and this many pixels around it, at the model's size. paste_back: restore the
    input's pixels where the soft mask is 0. image_guidance_scale: InstructPix2Pix's second guidance.
    Raises InputError.
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
                raise InputError(f"extend has {edge!r}; {did_you_mean(edge, EDGES)}")
            _within(f"extend {edge}", pixels, MAX_SIDE)
        for name, limit in (("mask_grow", 1024), ("mask_blur", 256), ("image_guidance_scale", 100)):
            _within(name, getattr(self, name), limit)
        if self.only_masked is not None:
            _within("only_masked", self.only_masked, MAX_SIDE)


def _within(name: str, value: Any, limit: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
        raise InputError(f"{name}={value!r} must be a number from 0 to {limit}; try 8")


@dataclass(frozen=True, eq=False)
class Canvas:
    """One image being edited: `image` at the output's size, and the part of it that is painted.

    mask: black and white, at the output's size; edge: the same with a soft edge. box: the part that is painted, None
    for all. size: width and height that it is painted at.
    latents: [C, h, w], scaled, of an image that is given as such; `image` is then blank.
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
        """What is painted on, float32 [3, h, w] in [-1, 1]."""
        part = self.image if self.box is None else self.image.resize(self.size, Image.Resampling.LANCZOS, self.box)
        pixels = to_tensor(part) * 2 - 1
        return fill_from_surroundings(pixels, self.mask_pixels()) if self.blur_fill else pixels

    def mask_pixels(self) -> Tensor:
        """float32 [1, h, w]: 1 where the image is repainted."""
        assert self.mask is not None
        if self.box is None:
            return to_tensor(self.mask)
        return to_tensor(binary(self.mask.resize(self.size, Image.Resampling.BILINEAR, self.box)))

    def paste(self, painted: Image.Image) -> Image.Image:
        """The output: what was painted, and the input's pixels around it where the options keep them."""
        if self.box is not None:
            left, top, right, bottom = self.box
            whole = self.image.copy()
            whole.paste(painted.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
            painted = whole
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
    """Prepare an image and its mask.

    size: width and height to paint at; where None, the image's own rounded down to a multiple, or with `only_masked`
    the model's. Raises InputError.
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
        raise InputError(f"the image has a side of {own} pixels, more than {MAX_SIDE}; give height= and width=")
    return max(own // multiple, 1) * multiple


def _mask_at(mask: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    found = binary(fit_to(mask, size, fit))
    if found.getbbox() is None:
        raise InputError(f"mask_image has nothing white left at {size[0]}x{size[1]}; grow it by mask_grow")
    return found


def _masked_canvas(image: Image.Image, mask: Image.Image | None, size: tuple[int, int], options: EditOptions) -> Canvas:
    if mask is None:
        raise InputError(f"only_masked={options.only_masked} needs a mask; give mask_image= (--mask)")
    mask = grow(mask, options.mask_grow)
    edge = soft_edge(mask, options.mask_blur)
    box = crop_around(edge, math.ceil(options.only_masked or 0), size[0] / size[1])
    return Canvas(image, size, mask, edge, box, *_fills(options))


def _fills(options: EditOptions) -> tuple[bool, bool, bool]:
    return options.mask_fill == "blur", options.mask_fill == "noise", options.paste_back


def extend(image: Image.Image, mask: Image.Image | None, edges: Mapping[str, int]) -> tuple[Image.Image, Image.Image]:
    """A larger canvas for outpainting, and the mask of what is new beside what was masked."""
    around = {edge: int(pixels) for edge, pixels in edges.items()}
    inner = Image.new("L", image.size, 0) if mask is None else mask
    wider = pad(image, **around)
    new = Image.new("L", wider.size, 255)
    new.paste(inner, (around.get("left", 0), around.get("top", 0)))
    return wider, new


def per_image(images: Sequence[Any], prompts: int, name: str) -> list[Any]:
    """One for each prompt, from one for all or as many as prompts. Raises InputError."""
    if len(images) not in (1, prompts):
        raise InputError(f"{name} has {len(images)} images for {prompts} prompts; give one, or one for each prompt")
    return list(images) * (prompts if len(images) == 1 else 1)
