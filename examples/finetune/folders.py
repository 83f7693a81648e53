"""Four folders to fine-tune on, each of another kind: `python -m examples.finetune.folders CORPUS OUT`.

CORPUS is the output of `examples.emoji.prepare`. The bundled model knows none of what the folders teach: two styles
that it was not trained on, an animal that was held out in every style, and a colouring that no set has.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps

from examples.command import exit_code
from examples.emoji.captions import with_article
from examples.emoji.concepts import chance
from examples.emoji.pairs import Picture, read_rows
from examples.emoji.render import render
from examples.finetune.streamline import by_label
from examples.folders import whole_folder
from latentdiff.errors import InputError

GROUPS = ("animals", "food", "travel")
SUBJECT = "koala"
SIZE = 128
INDIGO, GOLD = "#1b1464", "#ffd166"
SHAPES = ((128, 128), (160, 128), (128, 160), (192, 128))
CAPTIONS = {
    "blob": "{}, blob style", "streamline": "{}, streamline style", "subject": "a sks koala", "duotone": "{}, duotone",
}  # fmt: skip
COUNTS = {"blob": 60, "streamline": 60, "subject": 7, "duotone": 150}
UNSEEN = 60  # further pictures of the same kind, in `OUT/NAME-unseen`, to measure with


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--cache", type=Path, default=Path("emoji-packages"), help="where the npm tarballs are kept")
    given = parser.parse_args()
    return exit_code(write, given.corpus, given.out, given.cache)


def write(corpus: Path, out: Path, cache: Path) -> None:
    """Write the folders and the unseen pictures of each. Raises InputError if pictures are missing."""
    prompted = set(prompt_concepts(corpus))
    blob, emojitwo = (of_style(corpus, style, prompted) for style in ("blob", "emojitwo"))
    lines = {label: svg for label, svg in by_label(cache).items() if label not in prompted}
    koalas = [p for p in read_rows(corpus / "held_out") if p.concept == SUBJECT]
    kinds: dict[str, list[tuple[str, Image.Image]]] = {
        "blob": [(p.concept, Image.open(p.path)) for p in blob],
        "streamline": [(label, render(svg, SIZE)) for label, svg in lines.items()],
        "subject": [(p.concept, Image.open(p.path)) for p in koalas],
        "duotone": [(p.concept, duotone(Image.open(p.path), k)) for k, p in enumerate(emojitwo)],
    }
    with whole_folder(out) as partial:
        for name, pictures in kinds.items():
            count = COUNTS[name]
            if len(pictures) < count:
                raise InputError(
                    f"{corpus} has {len(pictures)} pictures for {name}, which needs {count}; prepare it again"
                )
            captioned = [(CAPTIONS[name].format(with_article(concept)), image) for concept, image in pictures]
            save(partial / name, captioned[:count])
            save(partial / f"{name}-unseen", captioned[count : count + UNSEEN] or captioned)
    print(f"{', '.join(kinds)} in {out}")


def prompt_concepts(corpus: Path, count: int = 24) -> list[str]:
    """Concepts that the model was trained on in all sets, in an order by hash; they are in none of the folders."""
    styles: dict[str, set[str]] = {}
    for picture in read_rows(corpus / "train", GROUPS):
        styles.setdefault(picture.concept, set()).add(picture.style)
    known = [concept for concept, drawn in styles.items() if len(drawn) == max(map(len, styles.values()))]
    return sorted(known, key=lambda concept: chance("fine-tune", concept))[:count]


def of_style(corpus: Path, style: str, without: Iterable[str]) -> list[Picture]:
    """Pictures of a style, one of each concept, in an order by hash."""
    found = {p.concept: p for p in read_rows(corpus / "train", GROUPS) if p.style == style and p.concept not in without}
    return [found[concept] for concept in sorted(found, key=lambda concept: chance(style, concept))]


def duotone(image: Image.Image, place: int) -> Image.Image:
    """Brightness as a blend from indigo to gold, on a canvas of one of four shapes."""
    toned = ImageOps.colorize(ImageOps.autocontrast(image.convert("L")), INDIGO, GOLD)
    canvas = Image.new("RGB", SHAPES[place % len(SHAPES)], GOLD)
    canvas.paste(toned, ((canvas.width - toned.width) // 2, (canvas.height - toned.height) // 2))
    return canvas


def save(folder: Path, pictures: list[tuple[str, Image.Image]]) -> None:
    """PNG files, each with a caption file."""
    folder.mkdir()
    for place, (caption, image) in enumerate(pictures):
        image.convert("RGB").save(folder / f"{place:03d}.png")
        (folder / f"{place:03d}.txt").write_text(f"{caption}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
