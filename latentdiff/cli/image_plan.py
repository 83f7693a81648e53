"""The plan of a command: the images to generate, with their files, prompts, seeds and settings, in batches."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentdiff.cli.expansion import Expansion
from latentdiff.cli.prompts_file import SEED_NAMES, PromptLine
from latentdiff.errors import InputError
from latentdiff.recipe import check_suffix
from latentdiff.recipe.files import FORMATS
from latentdiff.sampling.seeds import seeds_per_image
from latentdiff.text.prompt_syntax import take_lora_tags

FIRST_SEED = 0  # for a file of prompts without --seed, so that repeating the command gives the same images
OF_EACH = ("negative_prompt", "prompt_2", "negative_prompt_2", *SEED_NAMES)
"""Settings, besides the prompt, in which the images of a batch may differ; either all have one or none."""


@dataclass(frozen=True)
class PlannedImage:
    """One image to generate. settings: its seeds and the options of its line. place: the line, for messages."""

    path: Path
    prompt: str
    settings: dict[str, Any]
    place: str = ""


def images_of_prompts(
    output: Path, prompts: list[str], num_images: int, settings: dict[str, Any], expansion: Expansion
) -> list[PlannedImage]:
    """Images named `apple.png`, or `apple-1.png`, `apple-2.png`, … if there are several; image k has seed + k.

    Removes the seeds from the settings. Raises InputError for other formats and for seeds that are too large.
    """
    check_suffix(output)
    texts = [text for prompt in prompts for text in expansion.texts(prompt) for _ in range(num_images)]
    names = [f"-{k}" for k in range(1, len(texts) + 1)] if len(texts) > 1 else [""]
    paths = [output.with_name(f"{output.stem}{name}{output.suffix}") for name in names]
    seeds = _seeds(settings, len(texts))
    for name in SEED_NAMES:
        settings.pop(name, None)
    parts = zip(paths, texts, seeds, strict=True)
    return [PlannedImage(path, expansion.text(text, own["seed"]), own) for path, text, own in parts]


def images_of_lines(
    output: Path,
    lines: Sequence[PromptLine],
    num_images: int,
    settings: dict[str, Any],
    expansion: Expansion,
    file: Path,
) -> list[PlannedImage]:
    """Images named `012.png` for line 12, or `apple-012.png` if the output is a file; several add `-1`, `-2`, ….

    Image k of the file has seed + k; image k of a line with its own seed has that seed + k. Removes the seeds from
    the settings. Raises InputError.
    """
    digits, planned = len(str(lines[-1].number)), list[PlannedImage]()
    first = {name: settings.pop(name) for name in SEED_NAMES if settings.get(name) is not None}
    for line in lines:
        place = f"{file}, line {line.number}: "
        varied = (settings | line.settings).get("variation_strength") is not None
        counted = {"seed": FIRST_SEED} | ({"variation_seed": FIRST_SEED} if varied else {}) | first
        moved = {name: seed + len(planned) for name, seed in counted.items() if name != "seed" or not varied}
        try:
            each = expansion.texts(line.prompt)
            texts = [text for text in each for _ in range(line.num_images or num_images)]
            seeds = _seeds(settings | counted | moved | line.settings, len(texts))
            texts = [expansion.text(text, own["seed"]) for text, own in zip(texts, seeds, strict=True)]
        except InputError as error:
            raise InputError(f"{place}{error}") from error
        for k, (text, own) in enumerate(zip(texts, seeds, strict=True), 1):
            path = _path(output, f"{line.number:0{digits}}" + (f"-{k}" if len(texts) > 1 else ""))
            planned.append(PlannedImage(path, text, line.settings | own, place))
    return planned


def _seeds(settings: dict[str, Any], count: int) -> list[dict[str, int]]:
    """Consecutive seeds of `count` images; with a variation, one seed for all and consecutive seeds of its noise."""
    strength, other = settings.get("variation_strength"), settings.get("variation_seed")
    if strength is None and other is not None:
        raise InputError(f"variation_seed={other} requires variation_strength (--variation-strength); try 0.1")
    seeds = seeds_per_image(settings.get("seed"), count, step=1 if strength is None else 0)
    if strength is None:
        return [{"seed": seed} for seed in seeds]
    others = seeds_per_image(other, count, "variation_seed")
    return [dict(zip(SEED_NAMES, pair, strict=True)) for pair in zip(seeds, others, strict=True)]


def makes_folder(output: Path) -> bool:
    """Whether the output is a folder for the images of a file of prompts, rather than the beginning of their names."""
    return output.suffix.lower() not in FORMATS


def _path(output: Path, name: str) -> Path:
    return output / f"{name}.png" if makes_folder(output) else output.with_name(f"{output.stem}-{name}{output.suffix}")


def batches(planned: Sequence[PlannedImage], same: dict[str, Any], size: int) -> list[list[PlannedImage]]:
    """Batches of at most `size` images that differ only in texts and seeds, regardless of which images already exist.

    Raises InputError for LoRA tags that cannot be parsed.
    """
    groups: dict[str, list[PlannedImage]] = {}
    for item in planned:
        try:
            shape = _shape(item, same | item.settings)
        except InputError as error:
            raise InputError(f"{item.place}{error}") from error
        groups.setdefault(shape, []).append(item)
    return [group[k : k + size] for group in groups.values() for k in range(0, len(group), size)]


def _shape(item: PlannedImage, settings: dict[str, Any]) -> str:
    """A key that is equal for images that can share a batch: all settings except texts, and the LoRAs in the texts."""
    texts = [item.prompt, settings.get("prompt_2") or ""]
    loras = [take_lora_tags(text)[1] for text in texts] if settings.get("prompt_syntax") != "plain" else []
    values = {name: settings[name] is not None if name in OF_EACH else settings[name] for name in sorted(settings)}
    return json.dumps([values, str(loras)], default=str)
