"""60 pictures of a style that the bundled model has never seen: `python -m examples.finetune.streamline OUT`.

Streamline Emojis, CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/), rasterised, with caption files.
"""

import argparse
import json
import re
import sys
from itertools import islice
from pathlib import Path

from examples.command import exit_code
from examples.emoji.concepts import chance, read_emoji
from examples.emoji.render import render
from examples.emoji.sources import NAMES, drawings, fetch, read_members
from examples.folders import whole_folder

PACKAGE = "@iconify-json/streamline-emojis@1.2.4"
GROUPS = ("smileys", "animals", "food", "travel")
COUNT = 60
PROMPTS = (
    "a cat face", "a dog face", "a red apple", "a grinning face", "a house", "an automobile", "a koala", "a pizza",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--cache", type=Path, default=Path("emoji-packages"), help="where the npm tarballs are kept")
    parser.add_argument("--size", type=int, default=128, help="side of the square in pixels")
    arguments = parser.parse_args()
    return exit_code(write, arguments.out, arguments.cache, arguments.size)


def write(out: Path, cache: Path, size: int) -> None:
    """Download, select and rasterise. Raises InputError if the download fails or `out` exists."""
    found = dict(islice(by_label(cache).items(), COUNT))
    with whole_folder(out) as partial:
        for label, svg in found.items():
            name = label.replace(" ", "-")
            render(svg, size).save(partial / f"{name}.png")
            article = "an" if label[0] in "aeiou" else "a"
            (partial / f"{name}.txt").write_text(f"{article} {label}, streamline style\n", encoding="utf-8")
    print(f"{len(found)} pictures in {out}")


def by_label(cache: Path) -> dict[str, bytes]:
    """The drawings as SVG files, one of each concept that no prompt names, in an order by hash."""
    names = {emoji.label: emoji.group for emoji in read_emoji(fetch(NAMES, cache)).values()}
    icons = json.loads(read_members(fetch(PACKAGE, cache), r"package/icons\.json")["package/icons.json"])
    labels = {name: re.sub(r"-\d+$", "", name).replace("-", " ") for name in icons["icons"]}
    candidates = [name for name, label in labels.items() if names.get(label) in GROUPS and not _is_prompted(label)]
    first = {labels[name]: name for name in sorted(candidates, reverse=True)}
    chosen = sorted(first, key=lambda label: chance("streamline", label))
    return drawings(icons, {first[label]: label for label in chosen})


def _is_prompted(label: str) -> bool:
    """Whether the label shares a word with `PROMPTS`, which must stay unseen in training."""
    words = {word for prompt in PROMPTS for word in prompt.split()[1:]} - {"face"}
    return bool(words & set(label.split()))


if __name__ == "__main__":
    sys.exit(main())
