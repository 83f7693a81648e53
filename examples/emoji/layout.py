"""Positions of objects in a scene, and compositing."""

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from examples.emoji.colours import BACKGROUNDS
from examples.emoji.sprites import Pixels, resized

SIZE = 128
WHITE = (255, 255, 255)
GAP = 6  # pixels between two objects, and twice the minimum distance to the edge
GRIDS = {2: ((2, 1), (2, 1), (1, 2), (2, 2)), 3: ((2, 2), (2, 2), (2, 2), (3, 1), (3, 3)), 4: ((2, 2),) * 5 + ((3, 3),)}
CONTRAST = 48  # of 255, in the channel that differs most
LEAST_VISIBLE = 0.7
Box = tuple[float, float, float]  # left, top and side of a square


def background_colour(word: str) -> tuple[int, int, int]:
    """The RGB of a background in a named colour."""
    return BACKGROUNDS.get(word, WHITE)


def stands_out(rgba: Pixels, background: str) -> bool:
    """Whether most of the foreground has enough contrast to the background."""
    pixels = rgba[rgba[..., 3] >= 128][:, :3].astype(np.int16)
    distance = np.abs(pixels - np.array(background_colour(background), np.int16)).max(1)
    return bool((distance > CONTRAST).mean() >= LEAST_VISIBLE)


def compose(things: Sequence[tuple[Pixels, Box]], background: str) -> Image.Image:
    """Draw objects [H, W, 4] in the middle of their boxes on a plain background."""
    image = Image.new("RGB", (SIZE, SIZE), background_colour(background))
    for rgba, (left, top, side) in things:
        part = resized(rgba, side)
        image.paste(part, (round(left + (side - part.width) / 2), round(top + (side - part.height) / 2)), part)
    return image


def anywhere(rng: random.Random, side: float) -> Box:
    """A random square in the picture."""
    room = SIZE - GAP - side
    return GAP / 2 + rng.random() * room, GAP / 2 + rng.random() * room, side


def inside(rng: random.Random, cell: Box, scale: float) -> Box:
    """A random square within a cell minus its margins, of `scale` times that size."""
    left, top, side = cell
    size = scale * (side - GAP)
    room = side - GAP - size
    return left + GAP / 2 + rng.random() * room, top + GAP / 2 + rng.random() * room, size


def cells_of_copies(rng: random.Random, number: int) -> list[Box]:
    """Some cells of a grid over the picture; a grid of one row or column is shifted as a whole."""
    columns, rows = rng.choice(GRIDS[number])
    side = SIZE / max(columns, rows)
    left, top = (rng.random() * (SIZE - side * count) for count in (columns, rows))
    places = [(left + x * side, top + y * side, side) for x in range(columns) for y in range(rows)]
    return rng.sample(places, number)


def cells_of_two(rng: random.Random, relation: str) -> list[Box]:
    """Two half cells, the first "left of" or "above" the second, each shifted across by less than half a cell."""
    half = SIZE / 2
    shifts = [half / 2 + rng.uniform(-0.35, 0.35) * half for _ in range(2)]
    if relation == "left of":
        return [(k * half, shift, half) for k, shift in enumerate(shifts)]
    return [(shift, k * half, half) for k, shift in enumerate(shifts)]


def relative_positions(here: Box, there: Box) -> list[str]:
    """The positions of one cell of a grid relative to another, such as "left of" and "above"."""
    right, down = there[0] - here[0], there[1] - here[1]
    words = [("left of" if right > 0 else "right of", right), ("above" if down > 0 else "below", down)]
    return [word for word, distance in words if distance]
