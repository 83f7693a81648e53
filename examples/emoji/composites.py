"""Compose corpus pictures into scenes that satisfy the requests of the benchmark; never used for training."""

import random
from collections.abc import Sequence

import numpy as np

from examples.emoji.combinations import OPPOSITE
from examples.emoji.follow_requests import Request
from examples.emoji.layout import GAP, SIZE, anywhere, cells_of_copies, cells_of_two, compose, inside, stands_out
from examples.emoji.parts import Pixels
from examples.emoji.sprites import Sprite
from examples.emoji.vocabulary import Word

TRIES = 50


def composites(requests: Sequence[Request], count: int, seed: int) -> list[list[Pixels]]:
    """`count` pictures [SIZE, SIZE, 3] that satisfy each request, in the styles that have all objects."""
    return [
        [composite(request, random.Random(f"{seed}/{place}/{k}")) for k in range(count)]
        for place, request in enumerate(requests)
    ]


def composite(request: Request, rng: random.Random) -> Pixels:
    """One picture for a request. Objects with too little contrast to the background are replaced, up to a limit."""
    for _ in range(TRIES):
        things = _things(request, rng)
        if all(stands_out(rgba, request.background) for rgba in things):
            break
    return np.array(compose(_placed(request, things, rng), request.background))


def _things(request: Request, rng: random.Random) -> list[Pixels]:
    """Pictures of the objects, in one style if it has all of them."""
    shown = [_choices(word, colour) for word, colour in zip(request.words, request.colours, strict=True)]
    common = set.intersection(*({sprite.style for sprite in sprites} for sprites in shown))
    style = rng.choice(sorted(common)) if common else None
    chosen = [rng.choice([s for s in sprites if style in (None, s.style)]) for sprites in shown]
    drawn = [s.rgba if c is None else s.in_colour(c) for s, c in zip(chosen, request.colours, strict=True)]
    return [rgba for rgba in drawn if rgba is not None]


def _choices(word: Word, colour: str | None) -> Sequence[Sprite]:
    return word.sprites if colour is None else word.painted(colour)


def _placed(
    request: Request, things: list[Pixels], rng: random.Random
) -> list[tuple[Pixels, tuple[float, float, float]]]:
    if request.number > 1:
        scale = rng.uniform(0.8, 1)
        return [(things[0], inside(rng, cell, scale)) for cell in cells_of_copies(rng, request.number)]
    if len(things) == 1:
        return [(things[0], anywhere(rng, rng.uniform(60, SIZE - GAP)))]
    relation = request.relation or rng.choice(("left of", "above"))
    if relation in ("right of", "below"):
        things, relation = things[::-1], OPPOSITE[relation]
    cells = cells_of_two(rng, relation)
    return [(rgba, inside(rng, cell, rng.uniform(0.75, 1))) for rgba, cell in zip(things, cells, strict=True)]
