"""Generate scenes whose captions are reliable: `python -m examples.emoji.scenes data/emoji OUT --num 40000`.

Scenes have objects from the corpus's training pictures with known colour, number and position, and no held-out
combination. Scene k of a seed is always the same. OUT is an image folder to train on.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from examples.command import exit_code
from examples.emoji.colours import BACKGROUNDS, COLOURS
from examples.emoji.combinations import colour_part, number_part, pair_part, position_part
from examples.emoji.layout import (
    GAP,
    SIZE,
    Box,
    anywhere,
    cells_of_copies,
    cells_of_two,
    compose,
    inside,
    relative_positions,
    stands_out,
)
from examples.emoji.scene_captions import Phrase, scene_captions
from examples.emoji.split import CORE
from examples.emoji.sprites import Pixels, Sprite, SpriteBox, read_sprites
from examples.folders import whole_folder
from latentdiff.errors import InputError

KINDS = {
    "original": 0.16,
    "single": 0.06,
    "colour": 0.16,
    "number": 0.2,
    "pair": 0.08,
    "position": 0.12,
    "attributes": 0.12,
    "several": 0.1,
}
COLOURED_BACKGROUND = 0.25


@dataclass(frozen=True)
class Scene:
    """A picture, its contents and its captions."""

    image: Image.Image
    kind: str
    style: str
    concepts: tuple[str, ...]
    captions: tuple[str, ...]


class SceneMaker:
    """Generates scenes from `sprites` by seed and number. part_is_free: whether a combination may be shown."""

    def __init__(self, sprites: list[Sprite], seed: int) -> None:
        if len({sprite.concept for sprite in sprites if sprite.is_single}) < 2:
            raise InputError("scenes require at least two concepts that are single connected objects; add --styles")
        self.seed = seed
        self.all = SpriteBox(sprites)
        self.single = SpriteBox([sprite for sprite in sprites if sprite.is_single])
        self.kinds: dict[str, Callable[[random.Random], Scene | None]] = {
            "original": self._original,
            "single": self._single,
            "colour": self._colour,
            "number": self._number,
            "pair": lambda rng: self._two(rng, "pair", placed=False, coloured=False),
            "position": lambda rng: self._two(rng, "position", placed=True, coloured=False),
            "attributes": lambda rng: self._two(rng, "attributes", placed=rng.random() < 0.3, coloured=True),
            "several": self._several,
        }

    def scene(self, number: int) -> Scene:
        """Generate scene `number`; held-out and low-contrast combinations are rejected and replaced."""
        rng = random.Random(f"{self.seed}/{number}")
        (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
        while (scene := self.kinds[kind](rng)) is None:
            pass
        return scene

    def _original(self, rng: random.Random) -> Scene:
        """An unchanged picture of the corpus with its own captions."""
        sprite = self.all.draw(rng)
        image = Image.new("RGB", (SIZE, SIZE), "white")
        whole = sprite.whole().resize((SIZE, SIZE))
        image.paste(whole, mask=whole)
        return Scene(image, "original", sprite.style, (sprite.concept,), tuple(sprite.row["captions"]))

    def _single(self, rng: random.Random) -> Scene | None:
        sprite = self.all.draw(rng)
        side = rng.uniform(36, SIZE - GAP)
        size = "small" if side < 56 else "big" if side > 108 else None
        phrase = phrase_of(sprite, size=size if rng.random() < 0.6 else None)
        background = _background(rng, [sprite.rgba], [])
        return _compose("single", sprite, [(sprite.rgba, anywhere(rng, side))], [phrase], background, rng)

    def _colour(self, rng: random.Random) -> Scene | None:
        sprite, colour = self.all.draw(rng), rng.choice(list(COLOURS))
        painted = sprite.in_colour(colour)
        if painted is None or colour_part(sprite.concept, colour) != "train":
            return None
        whole = rng.random() < 0.5
        side = rng.uniform(104, SIZE - GAP) if whole else rng.uniform(40, 104)
        background = _background(rng, [painted], [colour])
        things = [(painted, anywhere(rng, side))]
        return _compose("colour", sprite, things, [phrase_of(sprite, colour=colour)], background, rng)

    def _number(self, rng: random.Random) -> Scene | None:
        sprite, number = self.single.draw(rng), rng.choice((2, 3, 4))
        colour = rng.choice(list(COLOURS)) if rng.random() < 0.25 else None
        rgba = sprite.rgba if colour is None else sprite.in_colour(colour)
        held_out = colour is not None and colour_part(sprite.concept, colour) != "train"
        if rgba is None or held_out or number_part(sprite.concept, number) != "train":
            return None
        cells = cells_of_copies(rng, number)
        scale = rng.uniform(0.8, 1)
        things = [(rgba, inside(rng, cell, scale)) for cell in cells]
        background = _background(rng, [rgba], [colour] if colour else [])
        phrases = [phrase_of(sprite, number=number, colour=colour)]
        return _compose("number", sprite, things, phrases, background, rng)

    def _two(self, rng: random.Random, kind: str, placed: bool, coloured: bool) -> Scene | None:
        first = self.single.draw(rng)
        second = self.single.draw(rng, first.style)
        colours: list[str | None] = [None, None]
        if coloured:
            colours = list(rng.sample(list(COLOURS), 2))
        relation = rng.choice(("left of", "above"))
        if _held_out(first, second, [relation], colours):
            return None
        drawn = [s.rgba if c is None else s.in_colour(c) for s, c in zip((first, second), colours, strict=True)]
        things = [rgba for rgba in drawn if rgba is not None]
        if len(things) < 2:
            return None
        cells = cells_of_two(rng, relation)
        boxes = [inside(rng, cell, rng.uniform(0.75, 1)) for cell in cells]
        background = _background(rng, things, [colour for colour in colours if colour])
        phrases = [phrase_of(s, colour=c) for s, c in zip((first, second), colours, strict=True)]
        parts = list(zip(things, boxes, strict=True))
        return _compose(kind, first, parts, phrases, background, rng, relation if placed else None)

    def _several(self, rng: random.Random) -> Scene | None:
        """Three or four different objects, whose positions captions do not state."""
        first, number = self.single.draw(rng), rng.choice((3, 4))
        sprites = [first, *(self.single.draw(rng, first.style) for _ in range(number - 1))]
        cells = cells_of_copies(rng, number)
        pairs = combinations(zip(sprites, cells, strict=True), 2)
        if any(_held_out(a, b, relative_positions(here, there)) for (a, here), (b, there) in pairs):
            return None
        things = [sprite.rgba for sprite in sprites]
        parts = [(rgba, inside(rng, cell, rng.uniform(0.8, 1))) for rgba, cell in zip(things, cells, strict=True)]
        phrases = [phrase_of(sprite) for sprite in sprites]
        return _compose("several", first, parts, phrases, _background(rng, things, []), rng)


def phrase_of(sprite: Sprite, number: int = 1, colour: str | None = None, size: str | None = None) -> Phrase:
    """The names of a sprite in captions; keywords are additional names if it is unchanged and the only object."""
    row = sprite.row
    names = [tuple(row[key]) if number == 1 and colour is None else () for key in ("aliases", "aliases_zh")]
    return Phrase(row["concept"], row["concept_zh"], row["group"], names[0], names[1], number, colour, size)


def _held_out(
    first: Sprite, second: Sprite, relations: Sequence[str], colours: Sequence[str | None] = (None, None)
) -> bool:
    """Whether two objects in a scene are a combination that is held out, regardless of its captions."""
    a, b = first.concept, second.concept
    parts = [pair_part(a, b), *(position_part(a, relation, b) for relation in relations)]
    parts += [colour_part(name, colour) for name, colour in zip((a, b), colours, strict=True) if colour]
    return a == b or any(part != "train" for part in parts)


def _background(rng: random.Random, things: list[Pixels], named: list[str]) -> str | None:
    """White, or a random colour that is not in `named`; None if not all objects have enough contrast to it."""
    colour = rng.choice(list(BACKGROUNDS)) if rng.random() < COLOURED_BACKGROUND or "white" in named else "white"
    clear = colour not in named and all(stands_out(rgba, colour) for rgba in things)
    return colour if clear else None


def _compose(
    kind: str,
    sprite: Sprite,
    things: list[tuple[Pixels, Box]],
    phrases: list[Phrase],
    background: str | None,
    rng: random.Random,
    relation: str | None = None,
) -> Scene | None:
    """Objects in the middle of square boxes on a plain background; None if there is no background."""
    if background is None:
        return None
    said = None if background == "white" else background
    captions = scene_captions(phrases, relation, said, sprite.style, rng)
    return Scene(
        compose(things, background), kind, sprite.style, tuple(phrase.concept for phrase in phrases), tuple(captions)
    )


_maker: SceneMaker  # of each worker process


def _start_worker(corpus: Path, styles: list[str], seed: int) -> None:
    global _maker
    _maker = SceneMaker(read_sprites(corpus, styles), seed)


def _write_scene(folder: Path, number: int) -> dict[str, Any]:
    scene = _maker.scene(number)
    name = f"{number // 1000:03d}/{number:06d}.png"
    scene.image.save(folder / name, compress_level=1)
    keys = {"kind": scene.kind, "style": scene.style, "concepts": scene.concepts}
    return {"file_name": name, "text": scene.captions[0], "captions": scene.captions, **keys}


def make_scenes(corpus: Path, out: Path, num: int, styles: list[str], seed: int, processes: int) -> None:
    """Write `num` scenes as an image folder, which is created atomically. Raises InputError."""
    if num < 1:
        raise InputError(f"num={num} must be at least 1; try 40000")
    with whole_folder(out) as partial:
        for k in range(-(-num // 1000)):
            (partial / f"{k:03d}").mkdir()
        with get_context("spawn").Pool(processes, _start_worker, (corpus, styles, seed)) as pool:
            rows = pool.starmap(_write_scene, ((partial, number) for number in range(num)), chunksize=32)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (partial / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{num} scenes in {out}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="what examples.emoji.prepare made")
    parser.add_argument("out", type=Path, help="folder to create; must be new or empty")
    parser.add_argument("--num", type=int, default=40_000)
    parser.add_argument("--styles", nargs="+", default=list(CORE))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    return exit_code(make_scenes, given.corpus, given.out, given.num, given.styles, given.seed, given.processes)


if __name__ == "__main__":
    sys.exit(main())
