"""Limits of one request, published at /v1/capabilities."""

from dataclasses import asdict, dataclass
from typing import Any

from latentdiff.serving.errors import LimitError


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    pixels: of one image. images, steps, prompt_characters: of one request. joined_prompts: the number joined by AND,
    each of which the network evaluates. queue: images waiting, in addition to those being sampled. body: bytes.
    deadline: seconds from acceptance to the result.
    """

    pixels: int = 2048 * 2048
    steps: int = 150
    images: int = 16
    prompt_characters: int = 20_000
    joined_prompts: int = 8
    queue: int = 128
    body: int = 32 * 2**20
    deadline: float = 600.0

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON."""
        return asdict(self)

    def check(self, name: str, value: float, limit: float, unit: str = "") -> None:
        """Raise LimitError if a value is above its limit. name: the field, or a text that begins with it."""
        if value > limit:
            space = f" {unit}" if unit else ""
            raise LimitError(
                f"{name}={str(value)[:20]} is above this server's limit of {limit}{space}; lower it", name.split()[0]
            )
