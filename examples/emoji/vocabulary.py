"""The objects in the requests of the benchmark: twenty per group, selected by a hash of their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from examples.emoji.colours import COLOURS, name_colour
from examples.emoji.concepts import GROUPS, chance
from examples.emoji.nouns import COLOUR_WORDS
from examples.emoji.sprites import Sprite
from latentdiff.errors import InputError

EACH_GROUP = 20
LEAST_STYLES = 3
NO_NOUN = re.compile(r"(^(man|woman|person|men|women|people) )|((ing|ed|done)$)")


@dataclass(frozen=True)
class Word:
    """An object of the vocabulary, its training sprites, and the colours that requests can use."""

    concept: str
    concept_zh: str
    group: str
    sprites: tuple[Sprite, ...]

    @cached_property
    def colours(self) -> list[str]:
        """Colours that two or more styles can be recoloured to, and that no style has originally."""
        natural = {name_colour(sprite.rgba[sprite.rgba[..., 3] >= 128][:, :3]) for sprite in self.sprites}
        return [colour for colour in COLOURS if colour not in natural and len(self.painted(colour)) >= 2]

    def painted(self, colour: str) -> list[Sprite]:
        """The sprites that can be recoloured to this colour."""
        return [sprite for sprite in self.sprites if sprite.in_colour(colour) is not None]


def read_vocabulary(sprites: Sequence[Sprite]) -> list[Word]:
    """Connected, countable objects with names of one or two words in at least three styles, equally many per group.

    Names of activities of persons ("man running") are omitted, because the genders look alike. Raises InputError if a
    group has too few objects.
    """
    by_concept: dict[str, list[Sprite]] = {}
    for sprite in sprites:
        by_concept.setdefault(sprite.concept, []).append(sprite)
    words = []
    for group in GROUPS.values():
        eligible = [c for c, found in by_concept.items() if found[0].row["group"] == group and _is_clear(c, found)]
        if len(eligible) < EACH_GROUP:
            raise InputError(f"the corpus has {len(eligible)} unambiguous objects of {group}; {EACH_GROUP} are needed")
        chosen = sorted(eligible, key=lambda concept: chance("vocabulary", concept))[:EACH_GROUP]
        words += [Word(c, by_concept[c][0].row["concept_zh"], group, tuple(by_concept[c])) for c in chosen]
    return words


def _is_clear(concept: str, sprites: Sequence[Sprite]) -> bool:
    plain = len(concept.split()) <= 2 and not COLOUR_WORDS.search(concept) and not NO_NOUN.search(concept)
    return plain and len(sprites) >= LEAST_STYLES and all(sprite.is_single for sprite in sprites)
