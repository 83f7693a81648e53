"""Fit an image to a size: crop, contain, stretch or pad, and the centre square that training uses."""

from typing import Literal

import numpy as np
from PIL import Image, ImageOps

Fit = Literal["cover", "contain", "stretch"]
FITS = ("cover", "contain", "stretch")
EDGES = ("left", "top", "right", "bottom")


def fit_to(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Resize an image to `size` (width, height).

    cover: fill the size and crop around the centre. contain: show the complete image, with edge pixels repeated up to
    the border (black for masks). stretch: scale each side independently.
    """
    if image.size == size:
        return image
    if fit == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    if fit == "cover":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    inner = ImageOps.contain(image, size, Image.Resampling.LANCZOS)
    left, top = (size[0] - inner.width) // 2, (size[1] - inner.height) // 2
    return pad(inner, left, top, size[0] - inner.width - left, size[1] - inner.height - top)


def centre_square(image: Image.Image, resolution: int) -> Image.Image:
    """The centre square of an image, resized to `resolution`."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def pad(image: Image.Image, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> Image.Image:
    """Enlarge the canvas: edge pixels are repeated outwards; masks (mode L) are padded with black."""
    if image.mode == "L":
        return ImageOps.expand(image, (left, top, right, bottom), fill=0)
    around = ((top, bottom), (left, right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), around, mode="edge"))
