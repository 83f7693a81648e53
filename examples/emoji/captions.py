"""Captions in English and Chinese, phrased like prompts: name, keywords and style."""

import random
import re

from examples.emoji.concepts import Emoji

UNCOUNTED = (
    "bacon", "bread", "butter", "coral", "fire", "flatbread", "fog", "garlic", "ice", "luggage", "meat", "money",
    "popcorn", "rice", "sake", "salt", "soap", "spaghetti", "sushi", "tennis", "thread", "wood", "yarn", "men", "women",
    "people",
)  # fmt: skip
SPOKEN_LIKE_Y_OR_W = ("euro", "ewe", "one", "unicorn", "uniform", "ufo")  # "a unicorn", "a one-piece swimsuit"
SINGULAR = ("ss", "us", "is", "claus")
ALSO = {"red apple": "apple", "automobile": "car"}
ALSO_ZH = {"red apple": "苹果", "cat face": "猫"}


def with_article(label: str) -> str:
    """'red apple' -> 'a red apple'; plurals and uncountable nouns ('bread') are unchanged."""
    head = re.split(r",| (?:with|in|on|of|for|at) ", label)[0].split(" ")[-1]
    plural = head == "skis" or (head.endswith("s") and not head.endswith(SINGULAR))
    if plural or head in UNCOUNTED or (label.startswith(("person", "man ", "woman")) and " " in label):
        return label
    vowel = label.startswith("hour") or (label[0] in "aeiou" and not label.startswith(SPOKEN_LIKE_Y_OR_W))
    return ("an " if vowel else "a ") + label


def captions(emoji: Emoji, style: str) -> list[str]:
    """Ten captions, six English and four Chinese, of which seven name the style. Deterministic."""
    rng = random.Random(f"{emoji.code}/{style}")
    label, zh = emoji.label, emoji.label_zh
    alias = rng.choice(emoji.aliases) if emoji.aliases else label
    alias_zh = rng.choice(emoji.aliases_zh) if emoji.aliases_zh else zh
    alias, alias_zh = with_article(ALSO.get(label, alias)), ALSO_ZH.get(label, alias_zh)
    return [
        f"{label}, {style} style",
        f"{with_article(label)}, {style} style",
        f"{alias}, {style} style",
        ", ".join([label, *_some(emoji.keywords, rng), f"{style} style"]),
        with_article(label),
        ", ".join([label, *_some(emoji.keywords, rng)]),
        f"{zh}，{style} 风格",
        f"{alias_zh}，{style} 风格",
        "，".join([zh, *_some(emoji.keywords_zh, rng), f"{style} 风格"]),
        zh,
    ]


def _some(words: tuple[str, ...], rng: random.Random) -> list[str]:
    return rng.sample(words, min(len(words), rng.randint(1, 3)))
