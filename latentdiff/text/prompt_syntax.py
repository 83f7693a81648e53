"""Parse the prompt syntax of AUTOMATIC1111's web UI: emphasis, BREAK, AND and LoRA tags.

`[from:to:when]` and `[a|b]`, which depend on the sampling step, are in `prompt_schedule`.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from latentdiff.errors import InputError

PromptSyntax = Literal["a1111", "plain"]
SYNTAXES: tuple[PromptSyntax, ...] = ("a1111", "plain")

EMPHASIS = 1.1  # of one pair of parentheses; square brackets divide by it
PIECE = re.compile(r"\\[()\[\]\\]?|[()\[\]]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
AND = re.compile(r"\bAND\b")
AND_WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))$")
TAG = re.compile(r"<(\w+):([^>]+)>")
LORA_TAGS, OTHER_TAGS = ("lora", "lyco"), ("hypernet",)


@dataclass(frozen=True)
class WeightedText:
    """Part of a prompt whose token states are multiplied by `weight`."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class LoraTag:
    """`<lora:name:text:unet>`: the name of a LoRA and its weights for the text encoders and the U-Net."""

    name: str
    text_weight: float = 1.0
    unet_weight: float = 1.0


def parse_emphasis(prompt: str) -> list[list[WeightedText]]:
    """Split a prompt at BREAK into sections of weighted text.

    `(a)` multiplies the weight by 1.1, `[a]` divides it by 1.1, `(a:1.3)` multiplies it by 1.3; brackets can be nested.
    An unclosed bracket applies up to the end, an unopened one is text, and a backslash escapes brackets. Adjacent parts
    with equal weights are merged. Raises InputError if the product of weights overflows.
    """
    matches = list(PIECE.finditer(prompt))
    texts: list[str] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    weights = np.ones(len(matches))
    for match in matches:
        piece, weight = match.group(), match.group(1)
        if piece in opened:
            opened[piece].append(len(texts))
        elif weight and opened["("]:
            weights[opened["("].pop() : len(texts)] *= float(weight)
        elif piece == ")" and opened["("]:
            weights[opened["("].pop() : len(texts)] *= EMPHASIS
        elif piece == "]" and opened["["]:
            weights[opened["["].pop() : len(texts)] *= 1 / EMPHASIS
        else:
            texts.append(piece[1:] if piece[0] == "\\" else piece)
    for bracket, factor in (("(", EMPHASIS), ("[", 1 / EMPHASIS)):
        for start in opened[bracket]:
            weights[start:] *= factor
    if not np.isfinite(weights).all():
        raise InputError("the product of the weights in the prompt is infinite; use fewer brackets or smaller numbers")
    return _sections(texts, weights[: len(texts)].tolist())


def _sections(texts: list[str], weights: list[float]) -> list[list[WeightedText]]:
    sections: list[list[WeightedText]] = [[]]
    for text, weight in zip(texts, weights, strict=True):
        first, *after_breaks = BREAK.split(text)
        _append(sections[-1], first, weight)
        for part in after_breaks:
            sections.append([])
            _append(sections[-1], part, weight)
    return [[piece for piece in section if piece.text] for section in sections]


def _append(section: list[WeightedText], text: str, weight: float) -> None:
    if section and section[-1].weight == weight:
        text = section.pop().text + text
    section.append(WeightedText(text, weight))


def split_and(prompt: str) -> list[WeightedText]:
    """The prompts joined by AND, each with the weight at its end (`a cat :1.2 AND a dog`), which defaults to 1.

    A prompt without AND is returned unchanged, whereas the web UI reads a weight there too: 30 in "a clock at 12:30".
    """
    parts = [part.rstrip() for part in AND.split(prompt)]
    if len(parts) == 1:
        return [WeightedText(prompt)]
    matches = [AND_WEIGHT.search(part) for part in parts]
    return [
        WeightedText(part[: match.start()].rstrip(), float(match[1])) if match else WeightedText(part)
        for part, match in zip(parts, matches, strict=True)
    ]


def take_lora_tags(prompt: str) -> tuple[str, list[LoraTag]]:
    """The prompt without its `<lora:name:text:unet>` tags, and the tags.

    The weight for the U-Net defaults to that for the text encoders, which defaults to 1. They can be given by name, as
    in `<lora:name:te=0.5:unet=0.8>`. Raises InputError for weights that are not finite numbers and for `<hypernet:…>`.
    """
    tags: list[LoraTag] = []

    def take(match: re.Match[str]) -> str:
        if match[1] in OTHER_TAGS:
            raise InputError(f"{match[0][:80]} names a hypernetwork, which is not supported; remove it from the prompt")
        if match[1] not in LORA_TAGS:
            return match[0]
        tags.append(_lora_tag(match[0], match[2].split(":")))
        return ""

    return TAG.sub(take, prompt), tags


def _lora_tag(tag: str, arguments: list[str]) -> LoraTag:
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    name, *weights = [argument.strip() for argument in arguments if "=" not in argument] or [""]
    named = dict(zip(("te", "unet"), weights, strict=False)) | {key.strip(): value for key, value in named.items()}
    if not name or len(weights) > 2 or named.keys() - {"te", "unet"}:
        raise InputError(f"{tag[:80]} is not understood; write <lora:name:0.8>, or <lora:name:0.5:0.8> for text:unet")
    text = _weight(tag, named.get("te", "1"))
    return LoraTag(name, text, _weight(tag, named["unet"]) if "unet" in named else text)


def _weight(tag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{tag[:80]} has the weight {text!r}, which must be a number; write <lora:name:0.8>")
    return value
