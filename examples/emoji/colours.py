"""Named colours: recolour a picture to a named colour, and name the colour of pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
SATURATED = 0.25
DARK = 0.15
NEAR = 45.0  # degrees around the dominant hue that are recoloured
LEAST_AGREEMENT = 0.75  # mean resultant length of the saturated pixels' hues
LEAST_SATURATED = 0.5  # share of the foreground
SPREAD = 0.5  # of the hues around their mean that is kept
MOST_SPREAD = 10.0


@dataclass(frozen=True)
class Colour:
    """The names of a colour, and the median hue (degrees), saturation and value of objects recoloured to it."""

    english: str
    chinese: str
    hue: float
    saturation: float
    value: float


COLOURS = {
    colour.english: colour
    for colour in (
        Colour("red", "红色", 0, 0.85, 0.88),
        Colour("orange", "橙色", 27, 0.9, 0.98),
        Colour("yellow", "黄色", 51, 0.8, 0.99),
        Colour("green", "绿色", 125, 0.75, 0.68),
        Colour("blue", "蓝色", 217, 0.8, 0.88),
        Colour("purple", "紫色", 274, 0.65, 0.75),
        Colour("pink", "粉色", 335, 0.45, 0.98),
        Colour("brown", "棕色", 22, 0.6, 0.5),
        Colour("black", "黑色", 230, 0.1, 0.2),
        Colour("white", "白色", 220, 0.03, 0.95),
        Colour("grey", "灰色", 220, 0.06, 0.6),
    )
}
BACKGROUNDS = {
    "red": (222, 60, 60), "orange": (255, 160, 50), "yellow": (255, 224, 80), "green": (96, 186, 100),
    "blue": (80, 140, 230), "purple": (160, 105, 215), "pink": (250, 165, 200), "brown": (140, 92, 60),
    "black": (30, 30, 34), "grey": (150, 152, 156),
}  # fmt: skip


def unit(pixels: NDArray[np.uint8]) -> Array:
    """uint8 to float32 in [0, 1]."""
    return pixels.astype(np.float32) * np.float32(1 / 255)


def to_hsv(rgb: Array) -> tuple[Array, Array, Array]:
    """RGB [..., 3] in [0, 1] to hue in degrees, saturation and value, each [...]."""
    red, green, blue = (rgb[..., k] for k in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = high - low
    safe = np.where(chroma > 0, chroma, 1)
    sixth = np.where(
        high == red,
        (green - blue) / safe % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    saturation = np.where(high > 0, chroma / np.where(high > 0, high, 1), 0)
    return (sixth * 60 * (chroma > 0)).astype(np.float32), saturation.astype(np.float32), high.astype(np.float32)


def to_rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """The inverse of `to_hsv`."""
    k = (np.array([5, 3, 1], np.float32) + hue[..., None] / 60) % 6
    return value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1))


def dominant_hue(hue: Array, saturation: Array, value: Array) -> tuple[float, float, float]:
    """Circular mean hue of the saturated foreground pixels, its resultant length, and the share of these pixels."""
    coloured = (saturation >= SATURATED) & (value >= DARK)
    if not coloured.any():
        return 0.0, 0.0, 0.0
    mean = np.exp(1j * np.deg2rad(hue[coloured])).mean()
    return float(np.rad2deg(np.angle(mean)) % 360), float(abs(mean)), float(coloured.mean())


def can_recolour(rgba: NDArray[np.uint8]) -> bool:
    """Whether a picture [H, W, 4] has one dominant, saturated hue."""
    foreground = rgba[rgba[..., 3] >= 128][:, :3]
    _, agreement, share = dominant_hue(*to_hsv(unit(foreground)))
    return agreement >= LEAST_AGREEMENT and share >= LEAST_SATURATED


def recolour(rgba: NDArray[np.uint8], colour: Colour) -> NDArray[np.uint8]:
    """Recolour the pixels [H, W, 4] around the dominant hue; shading and other pixels are unchanged.

    Hues are shifted to the new colour with half of their spread. Saturation and value are mapped so that their medians
    become those of the colour, while 0 and 1 stay fixed.
    """
    rgb = unit(rgba[..., :3])
    hue, saturation, value = to_hsv(rgb)
    foreground = rgba[..., 3] >= 128
    mean, _, _ = dominant_hue(hue[foreground], saturation[foreground], value[foreground])
    offset = (hue - mean + 180) % 360 - 180
    weight = np.clip((NEAR + 20 - np.abs(offset)) / 20, 0, 1) * np.clip((saturation - 0.08) / 0.12, 0, 1)
    body = foreground & (weight > 0.5) & (saturation >= SATURATED) & (value >= DARK)
    if not body.any():  # hues on both sides of a mean that no pixel has
        return rgba
    new_hue = (colour.hue + np.clip(SPREAD * offset, -MOST_SPREAD, MOST_SPREAD)) % 360
    new_saturation = _bend(saturation, float(np.median(saturation[body])), colour.saturation)
    new_value = _bend(value, float(np.median(value[body])), colour.value)
    painted = to_rgb(new_hue, new_saturation, new_value)
    mixed = rgb + weight[..., None] * (painted - rgb)
    return np.dstack([np.clip(mixed * 255 + 0.5, 0, 255).astype(np.uint8), rgba[..., 3]])


def _bend(x: Array, middle: float, target: float) -> Array:
    """Map `middle` to `target`: by a factor if it decreases, piecewise linearly with 1 fixed if it increases."""
    below = x * (target / max(middle, 0.02))
    if target <= middle:
        return np.minimum(below, 1)
    return np.where(x < middle, below, target + (x - middle) / (1 - middle) * (1 - target)).astype(np.float32)


def name_colour(rgb: NDArray[np.uint8]) -> str:
    """The most frequent colour name of pixels [N, 3], each named by its hue, saturation and value."""
    hue, saturation, value = to_hsv(unit(rgb))
    names = _names(hue, saturation, value)
    words, counts = np.unique(names, return_counts=True)
    return str(words[counts.argmax()])


def _names(hue: Array, saturation: Array, value: Array) -> NDArray[np.str_]:
    pale = saturation < 0.18
    conditions = [
        value < 0.28,
        pale & (value >= 0.82),
        pale & (value < 0.4),
        pale,
        ((hue >= 345) | (hue < 45)) & (value < 0.68) & ((hue >= 12) & (hue < 45)),
        ((hue >= 310) & (hue < 352)) | (((hue >= 352) | (hue < 12)) & (saturation < 0.5) & (value > 0.7)),
        (hue >= 352) | (hue < 13),
        hue < 40,
        hue < 68,
        hue < 170,
        hue < 245,
        hue < 310,
    ]
    words = ["black", "white", "black", "grey", "brown", "pink", "red", "orange", "yellow", "green", "blue", "purple"]
    return np.select(conditions, words, default="red")
