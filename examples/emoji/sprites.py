"""Training pictures of the corpus with transparency, for compositing scenes."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from examples.emoji.colours import COLOURS, can_recolour, name_colour, recolour
from examples.emoji.nouns import COLOUR_WORDS, WITHOUT_COLOUR, is_counted
from latentdiff.errors import InputError

Pixels = NDArray[np.uint8]
LEAST_PART = 0.97  # of the foreground, in the largest connected part


@dataclass
class Sprite:
    """A picture cropped to its foreground, RGBA [H, W, 4], and its row of metadata.jsonl."""

    row: dict[str, Any]
    rgba: Pixels
    path: Path

    @property
    def concept(self) -> str:
        return str(self.row["concept"])

    @property
    def style(self) -> str:
        return str(self.row["style"])

    @property
    def is_single(self) -> bool:
        """Whether it is one connected object with a countable name."""
        return bool(self.row["single"])

    def whole(self) -> Image.Image:
        """The uncropped picture, RGBA."""
        return Image.open(self.path)

    @cached_property
    def can_change(self) -> bool:
        """Whether it has one dominant hue, and a name without a colour."""
        named = COLOUR_WORDS.search(self.concept) and self.concept not in WITHOUT_COLOUR
        return not named and self.row["group"] != "people" and can_recolour(self.rgba)

    def in_colour(self, colour: str) -> Pixels | None:
        """The sprite in a named colour; None if the result would not have that colour."""
        if not self.can_change:
            return None
        painted = recolour(self.rgba, COLOURS[colour])
        return painted if name_colour(painted[painted[..., 3] >= 128][:, :3]) == colour else None


def read_sprites(corpus: Path, styles: Sequence[str], part: str = "train") -> list[Sprite]:
    """The sprites of a part of the corpus without skin tones. Raises InputError if it has no originals."""
    try:
        lines = (corpus / part / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["style"] in styles and "skin tone" not in row["text"]]
        return [_read(corpus, row) for row in rows]
    except OSError as error:
        raise InputError(
            f"{corpus} has no originals ({error.strerror}); create it again with examples.emoji.prepare"
        ) from None


def _read(corpus: Path, row: dict[str, Any]) -> Sprite:
    path = corpus / "originals" / row["file_name"]
    rgba = np.array(Image.open(path).convert("RGBA"))
    foreground = rgba[..., 3] >= 128
    rows, columns = np.nonzero(rgba[..., 3] >= 16)
    labels, count = ndimage.label(ndimage.binary_dilation(foreground))
    sizes = np.bincount(labels[foreground], minlength=2)[1:]
    connected = count > 0 and sizes.max() >= LEAST_PART * sizes.sum()
    row["single"] = bool(connected and is_counted(row["concept"]) and "，" not in row["concept_zh"])
    return Sprite(row, rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], path)


def resized(rgba: Pixels, side: float) -> Image.Image:
    """Resize so that the longer side has `side` pixels."""
    image = Image.fromarray(rgba)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


class SpriteBox:
    """Draws random sprites: a group (weighted by the square root of its size), then a concept, then a style."""

    def __init__(self, sprites: Sequence[Sprite]) -> None:
        self.groups: dict[str, dict[str, list[Sprite]]] = {}
        for sprite in sprites:
            self.groups.setdefault(sprite.row["group"], {}).setdefault(sprite.concept, []).append(sprite)

    def draw(self, rng: random.Random, style: str | None = None) -> Sprite:
        """Draw one sprite, of `style` if given."""
        names = sorted(self.groups)
        while True:
            (group,) = rng.choices(names, [len(self.groups[name]) ** 0.5 for name in names])
            concept = rng.choice(sorted(self.groups[group]))
            found = [sprite for sprite in self.groups[group][concept] if style in (None, sprite.style)]
            if found:
                return rng.choice(found)
