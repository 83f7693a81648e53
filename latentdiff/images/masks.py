"""Masks for inpainting: validate, grow, blur, crop and fill."""

import math

import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from latentdiff.errors import InputError

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels, the last two exclusive."""
SAME_ASPECT = 0.02  # largest relative difference of width / height, which rounding can cause


def binary(mask: Image.Image) -> Image.Image:
    """Threshold a mask at middle grey: 0 or 255."""
    return mask.point([0] * 128 + [255] * 128)


def check_mask(mask: Image.Image, image: Image.Image) -> Image.Image:
    """Resize a mask to the image, in black and white. Raises InputError for another aspect ratio or an empty mask."""
    ratio = mask.width * image.height / (mask.height * image.width)
    if abs(math.log(ratio)) > SAME_ASPECT:
        raise InputError(
            f"mask_image is {mask.width}x{mask.height} and the image {image.width}x{image.height}; "
            "use a mask with the aspect ratio of the image"
        )
    found = binary(binary(mask).resize(image.size))
    if found.getbbox() is None:
        raise InputError("mask_image is completely black; make the area to repaint white")
    return found


def grow(mask: Image.Image, pixels: int) -> Image.Image:
    """Grow white areas by this many pixels on every side (dilation with a square)."""
    while pixels > 0:
        step = min(pixels, 4)
        mask = mask.filter(ImageFilter.MaxFilter(2 * step + 1))
        pixels -= step
    return mask


def soft_edge(mask: Image.Image, sigma: float) -> Image.Image:
    """White inside the mask, with a gradient to black outside; black from a distance of 3 sigma + 2 pixels on."""
    if sigma == 0:
        return mask
    blurred = mask.filter(ImageFilter.GaussianBlur(sigma)).point([min(2 * value, 255) for value in range(256)])
    near = grow(mask, math.ceil(3 * sigma) + 1)
    return ImageChops.lighter(mask, ImageChops.darker(blurred, near))


def crop_around(mask: Image.Image, padding: int, aspect: float) -> Box:
    """The bounding box of the white area with padding, extended to the aspect ratio as far as the image allows."""
    bounds = mask.getbbox()
    assert bounds is not None
    left, top, right, bottom = bounds
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, mask.width), min(bottom + padding, mask.height)
    width, height = max(right - left, round((bottom - top) * aspect)), max(bottom - top, round((right - left) / aspect))
    left, right = _widen(left, right, width, mask.width)
    top, bottom = _widen(top, bottom, height, mask.height)
    return left, top, right, bottom


def _widen(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """An interval of this length around another one, shifted to lie within 0 and limit."""
    length = min(length, limit)
    start = min(max((start + stop - length) // 2, 0), limit - length)
    return start, start + length


def fill_from_surroundings(pixels: Tensor, mask: Tensor) -> Tensor:
    """Fill the masked area of pixels [3, H, W] smoothly from its border: pull-push (Gortler et al. 1996, sec. 3.4).

    mask: [1, H, W], 1 where pixels are unknown. If all are unknown, they become grey (0).
    """
    known = 1 - mask
    height, width = pixels.shape[-2:]
    if known.all() or max(height, width) == 1:
        return pixels * known
    sums = avg_pool2d(pixels * known, 2, ceil_mode=True, count_include_pad=False)
    weights = avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
    coarse = fill_from_surroundings(sums / weights.clamp_min(1e-6), (weights == 0).to(mask))
    smooth = interpolate(coarse[None], (height, width), mode="bilinear", antialias=False)[0]
    return pixels * known + smooth * mask


def to_latent_mask(mask: Tensor, factor: int) -> Tensor:
    """Reduce a mask [1, H, W] to [1, H/f, W/f]: 1 for every latent that covers a masked pixel."""
    return torch.nn.functional.max_pool2d(mask, factor)
