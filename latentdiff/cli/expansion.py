"""`--expand` and `--wildcards`: replace wildcards and variants in prompts."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentdiff.errors import InputError, did_you_mean, shorten

RANDOM, COMBINATORIAL = "random", "combinatorial"
SYNTAX = re.compile(r"\{[^{}|]*\|[^{}]*\}|__[\w/*-]+?__")


@dataclass(frozen=True)
class Expansion:
    """A random choice per image, or one image per combination. wildcards: None does not change prompts."""

    mode: str
    wildcards: Any = None

    def texts(self, prompt: str) -> list[str]:
        """All combinations of a prompt, or the prompt itself if choices are random. Raises InputError."""
        expands = self.wildcards is not None and self.mode == COMBINATORIAL
        texts: list[str] = self.wildcards.all(prompt) if expands else [prompt]
        return texts

    def text(self, prompt: str, seed: int) -> str:
        """The prompt of one image, with the random choices of its seed. Raises InputError."""
        expands = self.wildcards is not None and self.mode == RANDOM
        text: str = self.wildcards.draw(prompt, seed) if expands else prompt
        return text


def read_expansion(mode: str | None, folder: Path | None) -> Expansion:
    """Validate both options; the default mode is random. Raises InputError, also if dynamicprompts is missing."""
    if mode is None and folder is None:
        return Expansion(RANDOM)
    if mode not in (None, RANDOM, COMBINATORIAL):
        raise InputError(f"--expand {mode} is unknown; {did_you_mean(mode, (RANDOM, COMBINATORIAL))}")
    try:
        from latentdiff.text.wildcards import Wildcards
    except ImportError as error:
        raise InputError(
            f'wildcards require the package {error.name}, which is not installed; pip install "latentdiff[wildcards]"'
        ) from error
    return Expansion(mode or RANDOM, Wildcards(folder))


def warn_of_syntax(prompts: Iterable[str]) -> None:
    """Warn once if a prompt contains wildcards or variants, which are not replaced without an option."""
    found = next((match[0] for prompt in prompts if (match := SYNTAX.search(prompt))), None)
    if found is not None:
        print(f"warning: {shorten(found)} in the prompt is not replaced; use --expand random", file=sys.stderr)
