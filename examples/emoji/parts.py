"""Find the objects of a picture on a plain background as connected parts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from examples.emoji.colours import name_colour

Pixels = NDArray[np.uint8]
BORDER = 2  # width in pixels of the border whose median is the background
CONTRAST = 28  # of 255, in the channel that differs most
CLOSED = 2  # gaps of up to twice this many pixels inside an object are closed
LEAST_AREA = 0.006  # of the picture
MARGIN = 0.06  # margin around a part, relative to its longer side
CROP = 128  # side in pixels


@dataclass(frozen=True)
class Part:
    """A connected part: its crop [CROP, CROP, 3] on white, its colour in a word, its centroid (x, y) in [0, 1]."""

    crop: Pixels
    colour: str
    centre: tuple[float, float]


def find_parts(pixels: Pixels) -> list[Part]:
    """The connected parts of a picture [H, W, 3] that differ from its background, the largest first."""
    height, width, _ = pixels.shape
    mask = foreground(pixels)
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = [k + 1 for k in np.argsort(-areas, kind="stable") if areas[k] >= LEAST_AREA * height * width]
    return [_part(pixels, labels == k) for k in order]


def foreground(pixels: Pixels) -> NDArray[np.bool_]:
    """The mask of pixels that differ from the median colour of the border, with small gaps closed and holes filled."""
    edge = [pixels[:BORDER], pixels[-BORDER:], pixels[:, :BORDER], pixels[:, -BORDER:]]
    background = np.median(np.concatenate([part.reshape(-1, 3) for part in edge]), axis=0)
    mask = np.abs(pixels.astype(np.int16) - background.astype(np.int16)).max(2) > CONTRAST
    padded = np.pad(mask, CLOSED)  # otherwise closing would remove parts that touch the edge
    closed = ndimage.binary_closing(padded, structure=np.ones((3, 3)), iterations=CLOSED)
    return ndimage.binary_fill_holes(closed)[CLOSED:-CLOSED, CLOSED:-CLOSED]


def _part(pixels: Pixels, mask: NDArray[np.bool_]) -> Part:
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    alone = np.where(mask[..., None], pixels, 255).astype(np.uint8)
    cut = Image.fromarray(alone[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    side = round(max(cut.size) * (1 + 2 * MARGIN))
    square = Image.new("RGB", (side, side), "white")
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    crop = np.array(square.resize((CROP, CROP), Image.Resampling.BICUBIC))
    centre = (float(columns.mean() + 0.5) / width, float(rows.mean() + 0.5) / height)
    return Part(crop, name_colour(pixels[mask]), centre)
