"""Training views for the classifier of parts: real pictures as the benchmark crops them from a scene."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from examples.emoji import parts
from examples.emoji.colours import BACKGROUNDS, COLOURS
from examples.emoji.layout import anywhere, compose, stands_out
from examples.emoji.parts import Part, find_parts
from examples.emoji.sprites import Sprite

VIEWS = 12
CODE = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (__file__, parts.__file__))).hexdigest()[:12]
"""Identifies cached features: the contents of this file and of parts.py."""
SOFTENED: tuple[Callable[[Image.Image], Image.Image], ...] = (
    lambda image: image,
    lambda image: image.filter(ImageFilter.GaussianBlur(0.7)),
    lambda image: image.filter(ImageFilter.GaussianBlur(1.4)),
    lambda image: image.filter(ImageFilter.MedianFilter(3)),
    lambda image: image.filter(ImageFilter.MedianFilter(5)),
)
"""Generated pictures lack fine detail, so views of real pictures without it are added."""


def views_of(sprite: Sprite) -> list[Part]:
    """Crops of a sprite at several sizes, colours, backgrounds and degrees of blur."""
    rng = random.Random(f"views/{sprite.row['file_name']}")
    found = []
    for view in range(VIEWS):
        painted = sprite.in_colour(rng.choice(list(COLOURS))) if view % 2 else None
        rgba = sprite.rgba if painted is None else painted
        background = rng.choice(["white", "white", *BACKGROUNDS])
        image = compose([(rgba, anywhere(rng, rng.uniform(36, 122)))], background)
        image = rng.choice(SOFTENED)(image)
        cut = find_parts(np.array(image)) if stands_out(rgba, background) else []
        found += cut if len(cut) == 1 else []
    return found
