"""Parse the prompt syntax of AUTOMATIC1111's web UI: emphasis, BREAK, AND and LoRA tags.

`[from:to:when]` and `[a|b]`, which depend on the sampling step, are in `prompt_schedule`. The time is linear in the
length of the prompt, whatever a client of the server sends.
"""

import math
import re
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal

from latentdiff.errors import InputError

PromptSyntax = Literal["a1111", "plain"]
SYNTAXES: tuple[PromptSyntax, ...] = ("a1111", "plain")

EMPHASIS = 1.1  # of one pair of parentheses; square brackets divide by it
PIECE = re.compile(r"\\[()\[\]\\]?|[()\[\]]|:\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\bBREAK\b")
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
    rounds, squares = _Brackets(EMPHASIS), _Brackets(1 / EMPHASIS)
    texts: list[tuple[str, int, int]] = []  # with the innermost brackets around each
    for match in PIECE.finditer(prompt):
        piece, weight = match.group(), match.group(1)
        if piece == "(":
            rounds.open()
        elif piece == "[":
            squares.open()
        elif piece == "]" and squares.is_open:
            squares.close()
        elif (weight or piece == ")") and rounds.is_open:
            rounds.close(float(weight) if weight else EMPHASIS)
        else:
            texts.append((piece[1:] if piece[0] == "\\" else piece, rounds.innermost, squares.innermost))
    by_round, by_square = rounds.weights(), squares.weights()
    weighted = [(text, by_round[first] * by_square[second]) for text, first, second in texts]
    if not all(math.isfinite(weight) for _, weight in weighted):
        raise InputError("the product of the weights in the prompt is infinite; use fewer brackets or smaller numbers")
    return _sections(weighted)


class _Brackets:
    """Brackets of one kind, by number; 0 is the text outside of them. Unclosed ones apply up to the end."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.factors, self.parents, self.stack = [1.0], [0], [0]

    @property
    def innermost(self) -> int:
        return self.stack[-1]

    @property
    def is_open(self) -> bool:
        return len(self.stack) > 1

    def open(self) -> None:
        self.parents.append(self.innermost)
        self.factors.append(self.factor)
        self.stack.append(len(self.factors) - 1)

    def close(self, factor: float | None = None) -> None:
        number = self.stack.pop()
        if factor is not None:
            self.factors[number] = factor

    def weights(self) -> list[float]:
        """The product of the factors of each bracket and those around it."""
        products: list[float] = []
        for number, parent in enumerate(self.parents):
            products.append(self.factors[number] * products[parent] if number else 1.0)
        return products


def _sections(texts: list[tuple[str, float]]) -> list[list[WeightedText]]:
    """Split at BREAK, and merge adjacent parts with equal weights."""
    sections: list[list[tuple[str, float]]] = [[]]
    for text, weight in texts:
        first, *after_breaks = _split_at_breaks(text)
        sections[-1].append((first, weight))
        sections += [[(part, weight)] for part in after_breaks]
    return [_merged(section) for section in sections]


def _split_at_breaks(text: str) -> list[str]:
    first, *others = BREAK.split(text)
    if not others:
        return [first]
    return [first.rstrip(), *(part.strip() for part in others[:-1]), others[-1].lstrip()]


def _merged(section: list[tuple[str, float]]) -> list[WeightedText]:
    groups = groupby(section, key=itemgetter(1))
    merged = [WeightedText("".join(text for text, _ in parts), weight) for weight, parts in groups]
    return [part for part in merged if part.text]


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

    end = prompt.rfind(">") + 1  # a tag that is not closed would be searched up to the end, from every "<"
    return TAG.sub(take, prompt[:end]) + prompt[end:], tags


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
