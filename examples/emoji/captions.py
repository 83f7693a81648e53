"""Captions in English and Chinese: the name, some keywords, the style; as people type prompts."""

import random

from examples.emoji.concepts import Emoji


def with_article(label: str) -> str:
    """'red apple' -> 'a red apple'; plurals stay as they are."""
    head = label.split(",")[0].split(" ")[-1]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    if plural or (label.startswith(("person", "man", "woman")) and " " in label):
        return label
    return ("an " if label[0] in "aeiou" else "a ") + label


def captions(emoji: Emoji, style: str) -> list[str]:
    """Ten captions, six English and four Chinese; seven name the style. The same at every call."""
    rng = random.Random(f"{emoji.code}/{style}")
    label, zh = emoji.label, emoji.label_zh
    alias = with_article(rng.choice(emoji.aliases)) if emoji.aliases else with_article(label)
    alias_zh = rng.choice(emoji.aliases_zh) if emoji.aliases_zh else zh
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
