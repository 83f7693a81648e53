"""The request of `latentdiff generate`, from the options of the command."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from latentdiff.cli.edit_options import parse_extend
from latentdiff.cli.options import parse_lora

PARSED: dict[str, tuple[str, Callable[[Any], Any]]] = {  # options with a special syntax: the names of their settings
    "lora": ("loras", lambda texts: tuple(map(parse_lora, texts))),
    "embedding": ("embeddings", tuple),
    "approximate": ("approximate", lambda text: [name for name in map(str.strip, text.split(",")) if name]),
    "extend": ("extend", parse_extend),
}


@dataclass(frozen=True)
class Request:
    """The options of the command. given: those on the command line, with the names of `Recipe`."""

    output: Path
    prompts: list[str]
    num_images: int
    device: str
    recipe: Path | None
    given: dict[str, Any]
    image: Path | None = None
    mask: Path | None = None
    preview: Path | None = None
    preview_every: int | None = None
    prompts_file: Path | None = None
    batch_size: int | None = None
    num_processes: int | None = None
    expand: str | None = None
    wildcards: Path | None = None
    safety: str | None = None


def read_request(options: dict[str, Any]) -> Request:
    """The request for the options of the command; those that are not None and not fields of it are `given`."""
    request = {field.name: options[field.name] for field in fields(Request) if field.name in options}
    given = {name: value for name, value in options.items() if name not in request and value not in (None, [])}
    given |= {key: parse(given.pop(name)) for name, (key, parse) in PARSED.items() if name in given}
    return Request(**request | {"prompts": request["prompts"] or [], "given": given})
