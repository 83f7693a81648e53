"""Compare a model with its required standard, on held-out pairs that were not used for choosing settings.

`python -m examples.emoji.standard data/emoji -o standard.json [--judge RUN] [--model FOLDER] [--html PAGE]`
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from examples.command import exit_code
from examples.emoji.bench import Bench, open_bench
from examples.emoji.drawing import Settings, add_settings, draw, judge_bias, settings_of
from examples.emoji.judges import CANDIDATES, Seen
from examples.emoji.pairs import Picture, Prompt, add_corpus_options, add_judge, make_prompts, pixels_of
from examples.emoji.sheet import contact_sheet
from latentdiff.errors import InputError
from latentdiff.files import atomic_path, check_writable_parent
from latentdiff.metrics.bootstrap import Interval, intervals
from latentdiff.metrics.evaluate import Evaluation
from latentdiff.metrics.frechet import frechet_distance
from latentdiff.metrics.write_results import summary, write_html
from latentdiff.recipe.model_hash import hash_model

LEAST_PAIRS = 8
SPLITS = 20
CONCEPT_JUDGES = ("clip", "centroid")
Shown = tuple[Tensor, Tensor, str, str]


@dataclass(frozen=True)
class Bar:
    """The required range of a value."""

    asks: str
    key: str
    low: float = -float("inf")
    high: float = float("inf")


BARS = (
    *(Bar(f"concept first of {CANDIDATES} by {j}, of the real pictures' share: 0.70 or more", f"concept_{j}_share", 0.7)
      for j in CONCEPT_JUDGES),
    Bar("style named right: 0.95 or more", "style", 0.95),
    Bar("Frechet distance, times that of real against real: 3 or less", "frechet_times", high=3),
    *(Bar(f"English less Chinese, concept by {j}: within 0.05", f"language_gap_{j}", -0.05, 0.05)
      for j in CONCEPT_JUDGES),
)  # fmt: skip


@dataclass(frozen=True)
class Sets:
    """Generated pictures, picture k for pair `place[k]`, and the real pictures of all pairs: features and hits."""

    place: Tensor
    chinese: Tensor
    generated: Tensor
    real: Tensor
    hits: dict[str, Tensor]
    hits_real: dict[str, Tensor]


def statistic(sets: Sets, pairs: Tensor) -> dict[str, float]:
    """All metrics for a subset of the pairs."""
    chosen = torch.isin(sets.place, pairs)
    values: dict[str, float] = {}
    for judge in (name for name in CONCEPT_JUDGES if name in sets.hits):
        hits, real = sets.hits[judge], sets.hits_real[judge][pairs].mean().item()
        values |= {
            f"concept_{judge}": hits[chosen].mean().item(),
            f"concept_{judge}_real": real,
            f"concept_{judge}_share": hits[chosen].mean().item() / max(real, 1 / len(pairs)),
            f"language_gap_{judge}": (hits[chosen & ~sets.chinese].mean() - hits[chosen & sets.chinese].mean()).item(),
        }
    values["style"] = sets.hits["style"][chosen].mean().item()
    values["style_real"] = sets.hits_real["style"][pairs].mean().item()
    return values | frechet_times(sets, pairs)


def frechet_times(sets: Sets, pairs: Tensor) -> dict[str, float]:
    """Frechet distance to one half of the real pictures: of the other half, and of pictures generated for that half.

    Means over random halves, so that both sides have the same contents and the same number of pictures; the values are
    those for this small number.
    """
    generator = torch.Generator().manual_seed(len(pairs))
    half, ours, theirs = len(pairs) // 2, 0.0, 0.0
    for _ in range(SPLITS):
        order = pairs[torch.randperm(len(pairs), generator=generator)]
        first, second = order[:half], order[half : 2 * half]
        shuffled = torch.randperm(len(sets.place), generator=generator)
        drawn = torch.stack([shuffled[(sets.place[shuffled] == pair).nonzero()[0, 0]] for pair in first])
        ours += frechet_distance(sets.generated[drawn], sets.real[second]) / SPLITS
        theirs += frechet_distance(sets.real[first], sets.real[second]) / SPLITS
    return {"frechet": ours, "frechet_real": theirs, "frechet_times": ours / max(theirs, 1e-12)}


def measure_sets(
    bench: Bench, pictures: Sequence[Picture], prompts: Sequence[Prompt], settings: Settings
) -> tuple[Sets, Seen, Seen]:
    """Features of pictures that the model generates for prompts of these pictures, and of the pictures themselves."""
    real = bench.see(pixels_of(pictures), "real pictures")
    made = bench.see(draw(bench.pipe, prompts, settings))
    place = torch.tensor([prompt.place for prompt in prompts])
    sets = Sets(
        place=place,
        chinese=torch.tensor([prompt.language == "Chinese" for prompt in prompts]),
        generated=made.features,
        real=real.features,
        hits=bench.judges.hits(made, [pictures[k] for k in place.tolist()]),
        hits_real=bench.judges.hits(real, pictures),
    )
    return sets, made, real


def measure(bench: Bench, count: int, settings: Settings, seed: int, resamples: int) -> Evaluation:
    """The standard, as an evaluation whose values have intervals over pairs. Raises InputError for too few."""
    test, whole, pipe = bench.corpus.test, bench.corpus.whole, bench.pipe
    if len(test) < LEAST_PAIRS or count < 2 * len(test):
        raise InputError(f"{count} prompts for {len(test)} pairs; at least {LEAST_PAIRS} pairs and two prompts each")
    prompts = make_prompts(test, count, seed)
    sets, made, real = measure_sets(bench, test, prompts, settings)
    values = intervals(lambda pairs, _: statistic(sets, pairs), (len(test), 0), resamples, seed)
    never_seen, shown = _measure_whole(bench, settings, seed, resamples)
    model = {"model": str(bench.folder), "model_hash": hash_model(bench.folder)}
    return Evaluation(
        generated={**model, "prompts": count, **vars(settings)},
        real={"pairs": len(test), "never_seen": len(whole), "trained": len(bench.corpus.train)},
        resolution=real.pixels.shape[-1],
        network={"name": bench.network.name, "weights": bench.network.weights},
        judge=None if bench.clip is None else bench.clip.weights,
        seed=seed,
        resamples=resamples,
        values=values | never_seen,
        notes=[judge_bias(bench.clip, pipe), *_notes(bench, len(test))],
        shown=[*shown, *_beside(prompts, made, real, max(1, len(prompts) // 24))],
    )


def _measure_whole(
    bench: Bench, settings: Settings, seed: int, resamples: int
) -> tuple[dict[str, Interval], list[Shown]]:
    """The concepts that occur in no training picture, each in English and Chinese; the English ones are shown."""
    whole = bench.corpus.whole
    if len(whole) < 2:
        return {}, []
    prompts = make_prompts(whole, 2 * len(whole), seed)
    sets, made, real = measure_sets(bench, whole, prompts, settings)
    found = intervals(lambda rows, _: _of_whole(sets, rows), (len(whole), 0), resamples, seed)
    return {f"never_seen_{key}": one for key, one in found.items()}, _beside(prompts, made, real, 2)


def _beside(prompts: Sequence[Prompt], made: Seen, real: Seen, step: int) -> list[Shown]:
    """Every `step`-th generated picture with the corresponding real one."""
    places = range(0, len(prompts), step)
    return [(made.pixels[k], real.pixels[prompts[k].place], prompts[k].text, "") for k in places]


def _of_whole(sets: Sets, rows: Tensor) -> dict[str, float]:
    chosen = torch.isin(sets.place, rows)
    names = [name for name in ("clip", "style") if name in sets.hits]
    ours = {name: sets.hits[name][chosen].mean().item() for name in names}
    return ours | {f"{name}_real": sets.hits_real[name][rows].mean().item() for name in names}


def _notes(bench: Bench, pairs: int) -> list[str]:
    return [
        f"one of {bench.judges.pool.shape[1]} concepts is chosen; intervals are over {pairs} pairs, not over prompts",
        f"Frechet distances are of {pairs // 2} pictures against {pairs // 2}, means of {SPLITS} random halves; "
        "so few make both too large, and their ratio too kind",
        "never seen: concepts that occur in no training picture of any style, in English and Chinese",
    ]


def verdicts(result: Evaluation) -> list[dict[str, Any]]:
    """Each requirement whose value was measured, its value, and whether it was met."""
    return [
        {"asks": bar.asks, "value": (value := result.values[bar.key].value), "met": bar.low <= value <= bar.high}
        for bar in BARS
        if bar.key in result.values
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus_options(parser)
    add_settings(parser)
    add_judge(parser)
    parser.add_argument("--num", type=int, default=1000, help="prompts")
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--html", type=Path)
    parser.add_argument("--sheet", type=Path, help="PNG with the concepts that were never seen")
    return exit_code(run, parser.parse_args())


def run(given: argparse.Namespace) -> None:
    """Measure, print the results and write the files."""
    for path in (given.output, given.html, given.sheet):
        if path is not None:
            check_writable_parent(path)
    bench = open_bench(given)
    result = measure(bench, given.num, settings_of(bench.pipe, given), given.seed, given.resamples)
    found = verdicts(result)
    lines = [f"{'met' if one['met'] else 'MISSED'}: {one['asks']}; it is {one['value']:.3f}" for one in found]
    result.notes.extend(lines)
    print(summary(result))
    with atomic_path(given.output) as partial:
        partial.write_text(json.dumps(result.to_json() | {"standard": found}, ensure_ascii=False, indent=2) + "\n")
    if given.html is not None:
        write_html(result, given.html)
    if given.sheet is not None:
        never = result.shown[: result.real["never_seen"]]
        images = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for one in never for pixels in one[:2]]
        texts = [text for one in never for text in (one[2], "(real)")]
        with atomic_path(given.sheet) as partial:
            contact_sheet(images, 8, texts).save(partial)


if __name__ == "__main__":
    sys.exit(main())
