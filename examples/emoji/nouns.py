"""Noun phrases with articles, plurals, numbers and colours, in English and Chinese."""

import re

from examples.emoji.captions import UNCOUNTED, with_article
from examples.emoji.colours import COLOURS

NUMBERS = {1: ("one", "一"), 2: ("two", "两"), 3: ("three", "三"), 4: ("four", "四")}
IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "mouse": "mice", "ox": "oxen", "leaf": "leaves", "wolf": "wolves", "knife": "knives",
    "elf": "elves", "scarf": "scarves", "die": "dice", "fish": "fish", "tropical fish": "tropical fish",
    "sheep": "sheep", "deer": "deer", "ewe": "ewes", "bison": "bison", "moose": "moose", "squid": "squid",
    "shrimp": "shrimp", "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes", "volcano": "volcanoes",
    "hero": "heroes", "superhero": "superheroes", "sandwich": "sandwiches",
}  # fmt: skip
TAIL = re.compile(r" (?:with|in|on|of|for|at|behind|without) .*$")
COLOUR_WORDS = re.compile(rf"\b({'|'.join(COLOURS)}|gray|blond|bl\w+-faced)\b")
WITHOUT_COLOUR = {"red apple": ("apple", "苹果")}  # "a blue red apple" says two colours


def is_counted(label: str) -> bool:
    """Whether the object can be counted: a single thing with a short, plain, singular name."""
    head = TAIL.sub("", label).split(" ")[-1]
    return (
        re.fullmatch(r"[a-z][a-z' -]*", label) is not None
        and len(label.split(" ")) <= 4
        and not label.endswith(("o'clock", "thirty"))
        and with_article(label) != label
        and head not in UNCOUNTED
    )


def plural(label: str) -> str:
    """'red apple' -> 'red apples', 'glass of milk' -> 'glasses of milk'."""
    tail = "".join(TAIL.findall(label))
    stem = label.removesuffix(tail)
    *before, head = stem.split(" ")
    if stem in IRREGULAR:
        return IRREGULAR[stem] + tail
    if head in IRREGULAR:
        ending = IRREGULAR[head]
    elif head.endswith(("s", "x", "z", "ch", "sh")):
        ending = head + "es"
    elif re.search(r"[^aeiou]y$", head):
        ending = head[:-1] + "ies"
    else:
        ending = head + "s"
    return " ".join([*before, ending]) + tail


def english(label: str, number: int = 1, colour: str | None = None, size: str | None = None) -> str:
    """'a small blue cat', 'three red apples'."""
    if colour is not None:
        label = WITHOUT_COLOUR.get(label, (label, ""))[0]
    described = " ".join(word for word in (size, colour, label if number == 1 else plural(label)) if word)
    if number > 1:
        return f"{NUMBERS[number][0]} {described}"
    first = described.split(" ")[0]
    return (
        with_article(label) if first == label.split(" ")[0] else f"{'an' if first[0] in 'aeiou' else 'a'} {described}"
    )


def chinese(
    label: str, zh: str, number: int = 1, colour: str | None = None, size: str | None = None, measure: str = "个"
) -> str:
    """'一个红色的苹果', '三只猫'."""
    if colour is not None:
        zh = WITHOUT_COLOUR.get(label, ("", zh))[1]
    words = "".join(f"{word}的" for word in (size, colour and COLOURS[colour].chinese) if word)
    return f"{NUMBERS[number][1]}{measure}{words}{zh}"
