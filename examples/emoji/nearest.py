"""Check whether the model copies: show generated pictures with their nearest training pictures and distances.

`python -m examples.emoji.nearest data/emoji -o weights/emoji/nearest.png [--model FOLDER]`
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from examples.command import exit_code
from examples.emoji.drawing import add_settings, draw, settings_of
from examples.emoji.judges import Seen, features_of, look
from examples.emoji.pairs import Picture, Prompt, add_corpus_options, make_prompts, pixels_of, read_corpus
from latentdiff.files import atomic_path, check_writable_parent
from latentdiff.metrics.features import feature_network
from latentdiff.pipeline import LatentDiffusionPipeline

NEIGHBOURS = 3
ROWS = 20
FOOTER = 14
PARTS = (0.05, 0.25, 0.5, 0.75, 0.95)


def nearest(features: Tensor, train: Tensor, count: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Cosine distances and indices of the nearest rows of `train` [M, D] for each of [N, D]: [N, count] each."""
    distance = 1 - F.normalize(features.double()) @ F.normalize(train.double()).T
    found = distance.topk(count, largest=False)
    return found.values.clamp_min(0), found.indices


def copied(generated: Tensor, real: Tensor, share: float = 0.05) -> float:
    """Share of generated pictures [N] that are closer to training pictures than `share` of the held-out ones [M].

    About `share` if generated pictures are as different as those of two artists for one concept; 1 for copies.
    """
    return (generated < torch.quantile(real, share)).double().mean().item()


def table(distances: dict[str, Tensor]) -> str:
    """Quantiles of the distance to the nearest training picture, as Markdown."""
    lines = [f"| to the nearest training picture | n | {' | '.join(f'{part:.0%}' for part in PARTS)} |"]
    lines.append("|---" * (len(PARTS) + 2) + "|")
    for name, values in distances.items():
        numbers = torch.quantile(values, torch.tensor(PARTS, dtype=values.dtype)).tolist()
        lines.append(f"| {name} | {len(values)} | {' | '.join(f'{number:.3f}' for number in numbers)} |")
    return "\n".join(lines)


def sheet(pixels: Tensor, texts: Sequence[str], near: tuple[Tensor, Tensor], train: Sequence[Picture]) -> Image.Image:
    """Two examples per row: a generated picture, followed by its neighbours with their distances."""
    size, across = pixels.shape[-1], 2 * (NEIGHBOURS + 1)
    page = Image.new("RGB", (across * size + size // 4, -(-len(pixels) // 2) * (size + FOOTER)), "white")
    pen = ImageDraw.Draw(page)

    def put(image: Image.Image, text: str, x: int, y: int) -> None:
        page.paste(image, (x, y))
        pen.text((x + 2, y + size), text[: size // 6], fill="black")

    for k, picture in enumerate(pixels):
        x, y = k % 2 * (across // 2 * size + size // 4), k // 2 * (size + FOOTER)
        put(Image.fromarray(picture.permute(1, 2, 0).numpy()), texts[k], x, y)
        for j, (distance, row) in enumerate(zip(near[0][k].tolist(), near[1][k].tolist(), strict=True), 1):
            put(Image.open(train[row].path).convert("RGB").resize((size, size)), f"{distance:.3f}", x + j * size, y)
    return page


def _in_english(prompt: Prompt, pictures: Sequence[Picture]) -> str:
    """The English label, since Pillow's default font has no Chinese glyphs."""
    picture = pictures[prompt.place]
    return f"{'' if prompt.language == 'English' else '(zh) '}{picture.concept}, {picture.style}"


def run(given: argparse.Namespace) -> None:
    """Generate held-out and trained pairs, print the distances, and write a sheet with examples of both."""
    check_writable_parent(given.output)
    corpus = read_corpus(given.corpus, given.groups, given.styles)
    trained = random.Random(given.seed).sample(corpus.train, min(len(corpus.test), len(corpus.train)))
    pipe, network = LatentDiffusionPipeline.from_pretrained(given.model), feature_network()
    settings = settings_of(pipe, given)
    train = features_of(given.corpus, corpus.train, network)
    real = look(pixels_of(corpus.test), network, what="real pictures")
    parts: list[tuple[Seen, list[str]]] = []
    for pictures in (corpus.test, trained):
        prompts = make_prompts(pictures, 2 * len(pictures), given.seed)
        seen = look(draw(pipe, prompts, settings), network)
        parts.append((seen, [_in_english(prompt, pictures) for prompt in prompts]))
    distances = {
        "real held-out pairs": nearest(real.features, train)[0][:, 0],
        "generated held-out pairs": nearest(parts[0][0].features, train)[0][:, 0],
        "generated trained pairs": nearest(parts[1][0].features, train)[0][:, 0],
    }
    print(table(distances))
    for name in list(distances)[1:]:
        near = copied(distances[name], distances["real held-out pairs"])
        print(f"{near:.1%} of the {name} are nearer than 95 % of the real held-out pairs; 5 % would be no copying")
    chosen = [(part, k) for part in parts for k in _spread(len(part[1]), ROWS // 2)]
    pixels = torch.stack([part[0].pixels[k] for part, k in chosen])
    features = torch.stack([part[0].features[k] for part, k in chosen])
    with atomic_path(given.output) as partial:
        sheet(pixels, [part[1][k] for part, k in chosen], nearest(features, train), corpus.train).save(partial)


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` evenly spaced indices below `count`."""
    return [k * count // wanted for k in range(min(wanted, count))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus_options(parser)
    add_settings(parser)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return exit_code(run, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
