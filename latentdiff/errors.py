"""The errors a user can meet. Each message gives the value, the rule and the next action, in one line."""

import difflib
from collections.abc import Iterable


class LatentDiffError(Exception):
    """Any mistake that the user can correct; the command line prints its message and exits with 2."""


class InputError(LatentDiffError, ValueError):
    """An argument, option or input that cannot be used."""


class CheckpointError(LatentDiffError):
    """A model folder or weight file that is missing, damaged or of another kind."""


class NonFiniteError(LatentDiffError):
    """NaN or infinity in latents, losses or pixels; the message says where it was first seen."""


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """The nearest known name as a suggestion, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU; torch reports both as a RuntimeError with these words."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def shorten(value: object, limit: int = 80) -> str:
    """A value as a message quotes it: its repr, cut after `limit` characters."""
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
