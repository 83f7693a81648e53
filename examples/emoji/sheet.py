"""Write a labelled sheet of 64 prompts of the corpus, half of them held-out pairs for choosing settings.

`python -m examples.emoji.sheet data/emoji -o sheet.png [--model FOLDER]`
"""

import argparse
import json
import random
import sys
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from examples.command import exit_code
from examples.emoji.split import HELD_OUT_CONCEPTS, is_validation
from latentdiff.errors import InputError
from latentdiff.files import atomic_path, check_writable_parent

ALWAYS = (
    ("a red apple", "a red apple"),
    ("a cat face", "a cat face"),
    ("a rocket, fluent 3d style", "a rocket, fluent 3d"),
    ("猫", "(zh) cat"),
)
COLUMNS, TRAINED = 8, 28


def contact_sheet(images: list[Image.Image], columns: int, labels: list[str] | None = None) -> Image.Image:
    """Arrange pictures of one size in rows, each above its label, which has up to two lines."""
    size = images[0].width
    wrapped = [textwrap.wrap(label, size // 6)[:2] for label in labels or ()]
    footer = 14 * max(map(len, wrapped), default=0)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * size, rows * (size + footer)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = i % columns * size, i // columns * (size + footer)
        sheet.paste(image, (x, y))
        if labels:
            draw.multiline_text((x + 2, y + size), "\n".join(wrapped[i]), fill="black", spacing=1)
    return sheet


def prompts(corpus: Path, seed: int, groups: list[str], styles: list[str]) -> list[tuple[str, str]]:
    """(prompt, label) of 32 training pictures, the four that must work first, and of 32 held-out pairs."""
    rng = random.Random(seed)
    train, held_out = (_rows(corpus / part, groups, styles) for part in ("train", "held_out"))
    seen = [row for row in held_out if is_validation(row["concept"], row["style"])]  # the others are only for reporting
    pairs = [row for row in seen if row["concept"] not in HELD_OUT_CONCEPTS]
    if len(train) < TRAINED:
        raise InputError(
            f"{len(train)} training pictures of {groups} in {styles}; use values that occur in metadata.jsonl"
        )
    chosen = [_prompt(row, rng) for row in rng.sample(train, TRAINED)]
    return [*ALWAYS, *chosen, *(_prompt(row, rng) for row in rng.sample(pairs, min(32, len(pairs))))]


def _rows(folder: Path, groups: list[str], styles: list[str]) -> list[dict[str, Any]]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["group"] in groups and row["style"] in styles]


def _prompt(row: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.25:
        return f"{row['concept_zh']}，{row['style']} 风格", f"(zh) {row['concept']}, {row['style']}"
    return row["text"], f"{row['concept']}, {row['style']}"


def main() -> int:
    from examples.emoji.drawing import (
        add_settings,  # torch, which is not needed for a contact sheet
    )

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--seed", type=int, default=0)
    add_settings(parser)
    parser.add_argument(
        "--groups", nargs="+", default=["smileys", "animals", "food", "travel", "activities", "objects"]
    )
    parser.add_argument("--styles", nargs="+", default=["fluent 3d", "fluent flat", "noto", "twemoji"])
    return exit_code(run, parser.parse_args())


def run(given: argparse.Namespace) -> None:
    """Generate the pictures and write the sheet."""
    from latentdiff import LatentDiffusionPipeline

    check_writable_parent(given.output)
    texts = prompts(given.corpus, given.seed, given.groups, given.styles)
    pipe = LatentDiffusionPipeline.from_pretrained(given.model)
    images = pipe(
        [prompt for prompt, _ in texts],
        num_inference_steps=given.steps,
        guidance_scale=given.guidance_scale,
        sampler=given.sampler,
        seed=given.seed,
    ).images
    with atomic_path(given.output) as partial:
        contact_sheet(images, COLUMNS, [label for _, label in texts]).save(partial)


if __name__ == "__main__":
    sys.exit(main())
