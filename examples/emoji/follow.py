"""Measure how well a model follows prompts, with tasks like those of GenEval (Ghosh et al. 2023), on emoji.

`python -m examples.emoji.follow data/emoji -o follow.json [--markdown PAGE] [--model FOLDER] [--part validation]`

Prompts and detector are this project's own, so the numbers are not comparable with GenEval's.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from examples.command import exit_code
from examples.emoji.composites import composites
from examples.emoji.drawing import Settings, add_settings, draw, settings_of
from examples.emoji.follow_page import write_markdown
from examples.emoji.follow_requests import COUNTS, LANGUAGES, Request, make_requests
from examples.emoji.pairs import AT_ONCE, CORE, Prompt
from examples.emoji.part_classifier import PartClassifier, Seen, part_network, teach_classifier
from examples.emoji.parts import Pixels
from examples.emoji.sheet import contact_sheet
from examples.emoji.sources import SOURCES
from examples.emoji.sprites import read_sprites
from examples.emoji.vocabulary import Word, read_vocabulary
from latentdiff.errors import InputError
from latentdiff.files import atomic_path, check_writable_parent
from latentdiff.metrics.bootstrap import NORMAL_95, Interval, intervals
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.recipe.model_hash import hash_model

SHEET_COLUMNS = 12
LEAST_PROMPTS = 4


@dataclass(frozen=True)
class Hits:
    """Whether each picture satisfies its request: float64 [requests, languages, pictures]."""

    requests: Sequence[Request]
    met: Tensor

    def values(self, resamples: int, seed: int) -> dict[str, Interval]:
        """Accuracies of tasks and their mean, also by language if there are two, with intervals over requests."""
        found: dict[str, Interval] = {}
        names = ("", *(f", {language}" for language in LANGUAGES)) if self.met.shape[1] > 1 else ("",)
        tasks = list(dict.fromkeys(request.task for request in self.requests))
        for task in tasks:
            met = self.met[torch.tensor([request.task == task for request in self.requests])]
            found |= intervals(lambda rows, _, t=task, m=met: _accuracies(t, m[rows]), (len(met), 0), resamples, seed)  # type: ignore[misc]
        return found | {f"mean{name}": _mean([found[f"{task}{name}"] for task in tasks]) for name in names}

    def groups(self) -> dict[str, float]:
        """Accuracy of single objects in each group of emoji."""
        found: dict[str, list[float]] = {}
        for request, met in zip(self.requests, self.met, strict=True):
            if request.task == "single object":
                found.setdefault(request.words[0].group, []).append(met.mean().item())
        return {group: sum(means) / len(means) for group, means in found.items()}


def _accuracies(task: str, met: Tensor) -> dict[str, float]:
    """The mean of met [requests, languages, pictures], and the mean of each language if there are two."""
    values = {task: met.mean().item()}
    if met.shape[1] > 1:
        values |= {f"{task}, {language}": met[:, k].mean().item() for k, language in enumerate(LANGUAGES)}
    return values


def _mean(tasks: Sequence[Interval]) -> Interval:
    """The mean of independent values, with its interval."""
    value = sum(task.value for task in tasks) / len(tasks)
    std = sum(task.std**2 for task in tasks) ** 0.5 / len(tasks)
    return Interval(value, std, value - NORMAL_95 * std, value + NORMAL_95 * std)


def score(requests: Sequence[Request], seen: Sequence[Sequence[Sequence[Seen]]], languages: int = 1) -> Hits:
    """Score the detected parts. seen[k]: the parts in each picture of request k, by language."""
    met = [[request.is_met(picture) for picture in pictures] for request, pictures in zip(requests, seen, strict=True)]
    return Hits(requests, torch.tensor(met, dtype=torch.float64).view(len(requests), languages, -1))


def shuffled(requests: Sequence[Request]) -> list[Request]:
    """The requests, cyclically shifted by half within each task; scoring pictures with them gives the chance level."""
    found: list[Request] = []
    for task in dict.fromkeys(request.task for request in requests):
        own = [request for request in requests if request.task == task]
        found += own[len(own) // 2 :] + own[: len(own) // 2]
    return found


def draw_requests(
    pipe: LatentDiffusionPipeline, requests: Sequence[Request], count: int, settings: Settings, seed: int
) -> Iterator[list[Pixels]]:
    """Generate the pictures of each request: `count` in English, then as many in Chinese with the same noise."""
    prompts = [
        Prompt(request.text(language), language, place, seed + place * count + k)
        for place, request in enumerate(requests)
        for language in LANGUAGES
        for k in range(count)
    ]
    drawn: list[Pixels] = []
    for batch in draw(pipe, prompts, settings):
        drawn += list(batch.permute(0, 2, 3, 1).numpy())
        while len(drawn) >= len(LANGUAGES) * count:
            yield drawn[: len(LANGUAGES) * count]
            drawn = drawn[len(LANGUAGES) * count :]


@torch.no_grad()
def through_vae(pipe: LatentDiffusionPipeline, pictures: Sequence[list[Pixels]]) -> list[list[Pixels]]:
    """The pictures after the model's encoder and decoder."""
    flat = [picture for own in pictures for picture in own]
    found: list[Pixels] = []
    for k in range(0, len(flat), AT_ONCE):
        pixels = torch.from_numpy(np.stack(flat[k : k + AT_ONCE])).permute(0, 3, 1, 2).to(pipe.device, pipe.dtype)
        latents = pipe.vae.encode(pixels / 127.5 - 1).mean * pipe.vae.config.scaling_factor
        decoded = (pipe.decode(latents) + 1) * 127.5
        found += list(decoded.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    each = len(pictures[0])
    return [found[k : k + each] for k in range(0, len(found), each)]


def see_all(classifier: PartClassifier, pictures: Sequence[list[Pixels]], what: str) -> list[list[list[Seen]]]:
    """Detect the parts in each picture."""
    return [classifier.see(own) for own in tqdm(pictures, desc=what, disable=None, leave=False)]


def open_classifier(corpus: Path) -> tuple[list[Word], PartClassifier]:
    """The vocabulary, and a classifier trained on all emoji sets of the corpus, including held-out pictures."""
    words = read_vocabulary(read_sprites(corpus, CORE))
    styles = [source.style for source in SOURCES]
    sprites = [sprite for part in ("train", "held_out") for sprite in read_sprites(corpus, styles, part)]
    return words, teach_classifier(words, sprites, part_network(), corpus)


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, Pixels]]]:
    """Compute all results, and the first picture of each request. Raises InputError, CheckpointError."""
    words, classifier = open_classifier(given.corpus)
    requests = make_requests(words, given.part)[:: given.every]
    for task in COUNTS:
        if (few := sum(request.task == task for request in requests)) < LEAST_PROMPTS:
            raise InputError(f"{few} prompts of {task}; at least {LEAST_PROMPTS} are needed, so lower --every")
    pipe = LatentDiffusionPipeline.from_pretrained(given.model)
    settings = settings_of(pipe, given)
    drawn = [] if given.real else list(draw_requests(pipe, requests, given.pictures, settings, given.seed))
    real = composites(requests, given.pictures, given.seed)
    seen_real = see_all(classifier, real, "real pictures")
    hits = {
        "real": score(requests, seen_real),
        "real through the VAE": score(requests, see_all(classifier, through_vae(pipe, real), "real through the VAE")),
        "real, requests shuffled": score(shuffled(requests), seen_real),
    }
    if drawn:
        hits["generated"] = score(requests, see_all(classifier, drawn, "generated pictures"), len(LANGUAGES))
    assert pipe.folder is not None
    result = {
        "model": str(pipe.folder),
        "model_hash": hash_model(pipe.folder),
        "part": given.part,
        "prompts": {task: sum(request.task == task for request in requests) for task in COUNTS},
        "pictures": given.pictures,
        "seed": given.seed,
        "settings": asdict(settings),
        "classifier": {
            "objects": len(words), "held_out_drawings": classifier.drawings, "accuracy": classifier.accuracy,
        },
        "values": {
            name: {key: asdict(one) for key, one in found.values(given.resamples, given.seed).items()}
            for name, found in hits.items()
        },
        "groups": {name: found.groups() for name, found in hits.items()},
    }  # fmt: skip
    return result, [(request.text("English"), own[0]) for request, own in zip(requests, drawn or real, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="what examples.emoji.prepare made")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON")
    parser.add_argument("--markdown", type=Path, help="the same as tables")
    parser.add_argument("--sheet", type=Path, help="PNG of one picture for each prompt")
    parser.add_argument("--model", default=None, help="model folder; else the bundled one")
    parser.add_argument(
        "--part", choices=("validation", "test"), default="test", help="validation: for choosing settings"
    )
    parser.add_argument("--real", action="store_true", help="score only real pictures: the ceiling and the floor")
    parser.add_argument("--pictures", type=int, default=4, help="of each prompt and language")
    parser.add_argument("--every", type=int, default=1, help="use only every n-th prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=200)
    add_settings(parser)
    return exit_code(run, parser.parse_args())


def run(given: argparse.Namespace) -> None:
    """Measure, print the results and write the files."""
    for name in ("pictures", "every"):
        if getattr(given, name) < 1:
            raise InputError(f"{name}={getattr(given, name)} must be at least 1; omit it for the default")
    for path in (given.output, given.markdown, given.sheet):
        if path is not None:
            check_writable_parent(path)
    result, shown = measure(given)
    with atomic_path(given.output) as partial:
        partial.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    page = write_markdown(result)
    print(page)
    if given.markdown is not None:
        with atomic_path(given.markdown) as partial:
            partial.write_text(page, encoding="utf-8")
    if given.sheet is not None:
        sheet = contact_sheet([Image.fromarray(p) for _, p in shown], SHEET_COLUMNS, [text for text, _ in shown])
        with atomic_path(given.sheet) as partial:
            sheet.save(partial)


if __name__ == "__main__":
    sys.exit(main())
