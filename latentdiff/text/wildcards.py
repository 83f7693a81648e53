"""Wildcards `__animal__` and variants `{red|green}` in prompts, read by dynamicprompts from files of one folder."""

import logging
import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from dynamicprompts.enums import SamplingMethod
from dynamicprompts.sampling_context import SamplingContext
from dynamicprompts.wildcards import WildcardManager
from dynamicprompts.wildcards.collection.structured import parse_structured_file

from latentdiff.errors import InputError, did_you_mean, shorten

MAX_PROMPTS = 10_000  # of one prompt with all combinations
MAX_LOOKUPS = 200  # of wildcards for one prompt: files can refer to each other
MAX_DEPTH = 20  # of nested braces, since the parser is recursive
MAX_FILES, MAX_BYTES, MAX_LISTS = 10_000, 64 * 2**20, 100_000
SUFFIXES = (".txt", ".yaml", ".json")

logging.getLogger("dynamicprompts").setLevel(logging.ERROR)  # its warnings are errors here


class Wildcards:
    """Expands prompts. folder: of `animal.txt` for `__animal__`, one value per line, and of YAML and JSON files.

    Raises InputError for a folder that does not exist, is too large, or contains a link to a file outside of it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._lists = {} if folder is None else dict(_read_folder(folder))
        self._folder = folder

    def draw(self, prompt: str, seed: int) -> str:
        """The prompt with a random choice for each wildcard and variant; equal seeds give equal choices. Raises
        InputError.
        """
        return self._sample(prompt, SamplingMethod.RANDOM, seed, 1)[0]

    def all(self, prompt: str) -> list[str]:
        """The prompt with every combination of its wildcards and variants. Raises InputError for too many."""
        prompts = self._sample(prompt, SamplingMethod.COMBINATORIAL, 0, MAX_PROMPTS + 1)
        if len(prompts) > MAX_PROMPTS:
            raise InputError(f"{shorten(prompt)} has more than {MAX_PROMPTS} combinations; use --expand random")
        return prompts

    def _sample(self, prompt: str, method: SamplingMethod, seed: int, count: int) -> list[str]:
        if not needs_expansion(prompt):
            return [prompt]
        depth = max(_depths(prompt))
        if depth > MAX_DEPTH:
            raise InputError(
                f"{shorten(prompt)} has {depth} braces inside each other, more than {MAX_DEPTH}; use fewer"
            )
        manager = _Manager(self._lists, self._folder)
        context = SamplingContext(method, manager, rand=random.Random(seed))
        try:
            return [str(result) for result in context.sample_prompts(prompt, count)]
        except InputError:
            raise
        except RecursionError as error:
            raise InputError(
                f"{shorten(prompt)}: a wildcard or variable refers to itself; remove the reference"
            ) from error
        except Exception as error:  # its parser's errors have many types
            reason = shorten(" ".join(str(error).split()))
            raise InputError(f"{shorten(prompt)} cannot be expanded ({reason}); check its braces") from error


def needs_expansion(prompt: str) -> bool:
    """Whether a prompt has characters of this syntax; others are not changed."""
    return "{" in prompt or "__" in prompt


class _Manager(WildcardManager):  # type: ignore[misc, unused-ignore]
    """Values by name, of lists in memory. Raises InputError for a name without values, and after too many."""

    def __init__(self, lists: dict[str, Any], folder: Path | None) -> None:
        super().__init__(root_map={"": [lists]} if lists else None)
        self._names, self._folder, self._lookups = sorted(lists), folder, 0

    def get_values(self, wildcard: str) -> Any:
        self._lookups += 1
        if self._lookups > MAX_LOOKUPS:
            raise InputError(
                f"the prompt reads wildcards more than {MAX_LOOKUPS} times; use fewer, or remove one that "
                "refers to itself"
            )
        if self._folder is None:
            raise InputError(f"__{wildcard}__ is a wildcard; pass the folder of {wildcard}.txt with --wildcards")
        values = () if ".." in wildcard else super().get_values(wildcard)
        if not values:
            hint = did_you_mean(wildcard, self._names[:50]) if self._names else "the folder has no lists"
            raise InputError(f"__{wildcard[:80]}__ is not a wildcard of {self._folder}; {hint}")
        return values


def _depths(prompt: str) -> Iterator[int]:
    depth = 0
    for character in prompt:
        depth = max(0, depth + (character == "{") - (character == "}"))
        yield depth


def _read_folder(folder: Path) -> Iterator[tuple[str, Any]]:
    if not folder.is_dir():
        raise InputError(f"--wildcards {folder} is not a folder; pass a folder with files such as animal.txt")
    root, files, size, lists = folder.resolve(), 0, 0, 0
    for path in _files(folder):
        if not path.resolve().is_relative_to(root):
            raise InputError(f"{path} is a link to a file outside {folder}; copy the file into the folder")
        files, size = files + 1, size + path.stat().st_size
        if files > MAX_FILES or size > MAX_BYTES:
            raise InputError(
                f"--wildcards {folder} has more than {MAX_FILES} files or {MAX_BYTES} bytes; use a smaller one"
            )
        try:
            for name, values in islice(_lists(path, path.relative_to(folder)), MAX_LISTS + 1 - lists):
                lists += 1
                yield name, values
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise InputError(
                f"{path} cannot be read ({' '.join(str(error).split())[:200]}); correct or remove it"
            ) from error
        if lists > MAX_LISTS:
            raise InputError(f"--wildcards {folder} has more than {MAX_LISTS} lists; use a smaller one")


def _files(folder: Path) -> Iterator[Path]:
    """Sorted by name, without hidden files and linked folders."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix in SUFFIXES:
                yield Path(place, name)


def _lists(path: Path, name: Path) -> Iterator[tuple[str, Any]]:
    """The values of a file by the name that prompts use, such as `animals/pets` for animals/pets.txt."""
    if path.suffix == ".txt":
        lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n"))
        yield name.with_suffix("").as_posix(), [line for line in lines if line and not line.startswith("#")]
        return
    for key, values in parse_structured_file(path):
        yield (name.parent / key).as_posix(), values
