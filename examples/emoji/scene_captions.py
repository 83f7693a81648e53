"""Captions of scenes in English and Chinese, from several short and long templates."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from examples.emoji.captions import ALSO, ALSO_ZH
from examples.emoji.colours import COLOURS
from examples.emoji.nouns import chinese, english

EACH_LANGUAGE = 4
STYLED = 0.5
ADJECTIVES = ("smileys", "people")  # groups whose keywords describe rather than name: "cheery", "praise"
PLANT = re.compile(
    r"tree|flower|leaf|leaves|plant|rose|tulip|hibiscus|blossom|cactus|clover|shamrock|herb|seedling|bouquet|lotus|"
    r"mushroom|hyacinth|sheaf|rosette|feather|nest|paw|shell|web|coral|wood|palm"
)
SIZES = {"small": "小小", "big": "大大"}
OPENINGS = ("{}", "{}", "{}", "a picture of {}", "a photo of {}", "an emoji of {}", "a drawing of {}")
OPENINGS_ZH = ("{}", "{}", "{}", "{}的图片", "{}的照片", "画面上有{}", "画着{}的表情")
PAIRS = ("{0} and {1}", "{1} and {0}", "{0} next to {1}", "{0} with {1}", "{1} beside {0}")
PAIRS_ZH = ("{0}和{1}", "{1}和{0}", "{0}旁边有{1}", "{0}与{1}")
RELATIONS = {
    "left of": (
        "{0} to the left of {1}", "{0} left of {1}", "{0} on the left of {1}", "{1} to the right of {0}",
        "{1} right of {0}", "{0} on the left and {1} on the right",
    ),
    "above": (
        "{0} above {1}", "{0} above {1}", "{0} over {1}", "{1} below {0}", "{1} under {0}",
        "{0} at the top and {1} at the bottom",
    ),
}  # fmt: skip
RELATIONS_ZH = {
    "left of": ("{0}在{1}的左边", "{0}在{1}左边", "{1}在{0}的右边", "{0}的右边有{1}", "左边是{0}，右边是{1}"),
    "above": ("{0}在{1}的上面", "{0}在{1}上方", "{1}在{0}的下面", "{0}的下面有{1}", "上面是{0}，下面是{1}"),
}


@dataclass(frozen=True)
class Phrase:
    """A noun phrase for `number` copies of an object, with an optional colour and size."""

    concept: str
    concept_zh: str
    group: str
    aliases: tuple[str, ...] = ()
    aliases_zh: tuple[str, ...] = ()
    number: int = 1
    colour: str | None = None
    size: str | None = None

    def english(self, rng: random.Random) -> str:
        """'a small blue cat', sometimes by another name, sometimes 'a cat that is blue'."""
        label = self._name(self.concept, ALSO.get(self.concept), self.aliases, rng)
        if self.colour and self.size is None and rng.random() < 0.1:
            noun, verb = english(self.concept, self.number), "is" if self.number == 1 else "are"
            return f"{noun} that {verb} {self.colour}" if self.colour not in noun.split() else noun
        return english(label, self.number, self.colour, self.size)

    def chinese(self, rng: random.Random) -> str:
        """'一个蓝色的猫', '三只猫'; a single one sometimes without its number."""
        zh = self._name(self.concept_zh, ALSO_ZH.get(self.concept), self.aliases_zh, rng)
        is_animal = self.group == "animals" and not PLANT.search(self.concept)
        measure = "只" if is_animal and rng.random() < 0.5 else "个"
        phrase = chinese(self.concept, zh, self.number, self.colour, self.size and SIZES[self.size], measure)
        return phrase[2:] if self.number == 1 and rng.random() < 0.5 else phrase

    def _name(self, name: str, common: str | None, aliases: tuple[str, ...], rng: random.Random) -> str:
        """The name, often a more common synonym, sometimes an unambiguous keyword."""
        chance = rng.random()
        if common is not None and chance < 0.5:
            return common
        if aliases and self.group not in ADJECTIVES and chance > 0.8:
            return rng.choice(aliases)
        return name


def scene_captions(
    phrases: Sequence[Phrase], relation: str | None, background: str | None, style: str, rng: random.Random
) -> list[str]:
    """Captions of a scene of one to four kinds of object, half of them Chinese; of two, `relation` places the second.

    relation: "left of" or "above", or None if the captions do not state the positions. background: a colour, or None
    for white.
    """
    found = [_english(phrases, relation, background, style, rng) for _ in range(EACH_LANGUAGE)]
    return found + [_chinese(phrases, relation, background, style, rng) for _ in range(EACH_LANGUAGE)]


def _english(
    phrases: Sequence[Phrase], relation: str | None, background: str | None, style: str, rng: random.Random
) -> str:
    words = [phrase.english(rng) for phrase in phrases]
    if len(words) == 1:
        text = rng.choice(OPENINGS).format(words[0])
    elif len(words) > 2:
        text = " and ".join(_listed(words, ", ", rng))
    else:
        text = rng.choice(RELATIONS[relation] if relation else PAIRS).format(*words)
        text = f"a picture of {text}" if rng.random() < 0.15 else text
    if background is not None:
        text += f" on {'an' if background[0] in 'aeiou' else 'a'} {background} background"
    return text + (f", {style} style" if rng.random() < STYLED else "")


def _chinese(
    phrases: Sequence[Phrase], relation: str | None, background: str | None, style: str, rng: random.Random
) -> str:
    words = [phrase.chinese(rng) for phrase in phrases]
    if len(words) == 1:
        text = rng.choice(OPENINGS_ZH).format(words[0])
    elif len(words) > 2:
        text = "和".join(_listed(words, "、", rng))
    else:
        text = rng.choice(RELATIONS_ZH[relation] if relation else PAIRS_ZH).format(*words)
    if background is not None:
        text += f"，{COLOURS[background].chinese}背景"
    return text + (f"，{style} 风格" if rng.random() < STYLED else "")


def _listed(words: Sequence[str], comma: str, rng: random.Random) -> tuple[str, str]:
    """All words but one, in a random order, and the one that "and" connects with them."""
    *before, last = rng.sample(words, len(words))
    return comma.join(before), last
