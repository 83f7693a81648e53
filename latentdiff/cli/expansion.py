"""`--expand` and `--wildcards`: what wildcards and variants in prompts become."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentdiff.errors import InputError, did_you_mean, shorten

RANDOM, COMBINATORIAL = "random", "combinatorial"
SYNTAX = re.compile(r"\{[^{}]*\|[^{}]*\}|__[\w/*-]+?__")


@dataclass(frozen=True)
class Expansion:
    """A random choice for each image, or an image of each combination. wildcards: None leaves prompts as they are."""

    mode: str
    wildcards: Any = None

    def texts(self, prompt: str) -> list[str]:
        """The prompts that one prompt stands for. Raises InputError."""
        expands = self.wildcards is not None and self.mode == COMBINATORIAL
        texts: list[str] = self.wildcards.all(prompt) if expands else [prompt]
        return texts

    def text(self, prompt: str, seed: int) -> str:
        """The prompt of one image. Raises InputError."""
        expands = self.wildcards is not None and self.mode == RANDOM
        text: str = self.wildcards.draw(prompt, seed) if expands else prompt
        return text


def read_expansion(mode: str | None, folder: Path | None) -> Expansion:
    """--wildcards alone chooses at random. Raises InputError, also where dynamicprompts is not installed."""
    if mode is None and folder is None:
        return Expansion(RANDOM)
    if mode not in (None, RANDOM, COMBINATORIAL):
        raise InputError(f"--expand {mode} is unknown; {did_you_mean(mode, (RANDOM, COMBINATORIAL))}")
    try:
        from latentdiff.text.wildcards import Wildcards
    except ImportError as error:
        raise InputError(
            f'wildcards need a package that is not installed ({error.name}); pip install "latentdiff[wildcards]"'
        ) from error
    return Expansion(mode or RANDOM, Wildcards(folder))


def warn_of_syntax(prompts: Iterable[str]) -> None:
    """Say once on stderr that wildcards and variants are read as text."""
    found = next((match[0] for prompt in prompts if (match := SYNTAX.search(prompt))), None)
    if found is not None:
        print(f"warning: {shorten(found)} in the prompt is read as text; --expand random chooses", file=sys.stderr)
