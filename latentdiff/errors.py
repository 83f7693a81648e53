"""User-facing exceptions. Each message states the value, the rule and the next action in one line."""

import difflib
import math
from collections.abc import Iterable
from typing import Any


class LatentDiffError(Exception):
    """Base of errors that the user can correct; the command line prints the message and exits with code 2."""


class InputError(LatentDiffError, ValueError):
    """An invalid argument, option or input."""


class CheckpointError(LatentDiffError):
    """A model folder or weight file that is missing, damaged or of the wrong kind."""


class NonFiniteError(LatentDiffError):
    """NaN or infinity in latents, losses or pixels; the message states where it first occurred."""


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Suggest the closest known name, or list all of them if none is close."""
    names = sorted(known)
    near = difflib.get_close_matches(value[:100], names, n=1)  # its time grows with the length
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that GPU or CPU memory ran out, which torch reports as a RuntimeError."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def shorten(value: object, limit: int = 80) -> str:
    """The repr of a value for messages, truncated to `limit` characters."""
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def check_integer(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> int:
    """Convert an integer of any type, also of numpy and torch. Raises InputError for other values or out of range."""
    try:
        number = int(value)
        exact = not isinstance(value, str | bytes | bool) and number == value
    except (TypeError, ValueError, OverflowError, RuntimeError):
        exact = False
    if not exact:
        raise InputError(f"{name}={value!r} must be a whole number; try 1")
    if not low <= number <= high:
        rule = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise InputError(f"{name}={number} must be {rule}; try {min(max(number, low), high)}")
    return number


def check_number(value: Any, name: str) -> float:
    """Convert a number of any type, also of numpy and torch. Raises InputError for other values, such as strings."""
    try:
        if not isinstance(value, str | bytes | bool):
            return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise InputError(f"{name}={shorten(value)} must be a number")
