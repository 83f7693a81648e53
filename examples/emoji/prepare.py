"""Create the emoji corpus: `python -m examples.emoji.prepare OUT` writes two image folders, train and held_out.

`originals` contains the same pictures with transparency, for `examples.emoji.scenes`.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

from examples.command import exit_code
from examples.emoji.captions import captions
from examples.emoji.concepts import Emoji, read_emoji
from examples.emoji.render import on_white, render_transparent
from examples.emoji.sheet import contact_sheet
from examples.emoji.sources import NAMES, NAMES_CREDIT, SOURCES, Source, fetch, pictures
from examples.emoji.split import HELD_OUT_CONCEPTS, is_held_out
from examples.folders import whole_folder
from latentdiff.errors import InputError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to create; must be new or empty")
    parser.add_argument("--cache", type=Path, default=Path("emoji-packages"), help="where the npm tarballs are kept")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    arguments = parser.parse_args()
    return exit_code(prepare, arguments.out, arguments.cache, arguments.size)


def prepare(out: Path, cache: Path, size: int = 128) -> None:
    """Download, join, rasterise, split and write; the folder is created atomically.

    Raises InputError if `size` is not positive, `out` exists or cannot be created, npm fails or a tarball is damaged.
    """
    if size < 1:
        raise InputError(f"size={size} must be at least 1; the bundled model was trained on 128")
    start = time.monotonic()
    with whole_folder(out) as partial:
        emoji = read_emoji(fetch(NAMES, cache))
        found = pictures({source: fetch(source.package, cache) for source in SOURCES})
        rows = _without_twins(_rows(emoji, found), found)
        _render_all(rows, found, partial, size)
        _write(partial, rows)
    for (part, style), count in sorted(Counter((row["part"], row["style"]) for row in rows).items()):
        print(f"{part:9} {style:13} {count:5}")
    concepts = len({row["concept"] for row in rows})
    print(f"{len(rows)} pictures of {concepts} concepts in {out} after {time.monotonic() - start:.0f} s")


def _rows(emoji: dict[str, Emoji], found: dict[Source, dict[str, bytes]]) -> list[dict[str, Any]]:
    """One row per picture, ordered by source and code."""
    styles: dict[str, set[str]] = {}
    for source, images in found.items():
        for code in images.keys() & emoji.keys():
            styles.setdefault(emoji[code].concept, set()).add(source.style)
    return [
        _row(emoji[code], source.style, is_held_out(emoji[code].concept, source.style, styles[emoji[code].concept]))
        for source, images in found.items()
        for code in sorted(images.keys() & emoji.keys())
    ]


def _row(emoji: Emoji, style: str, held_out: bool) -> dict[str, Any]:
    texts = captions(emoji, style)
    return {
        "part": "held_out" if held_out else "train",
        "file_name": f"{style.replace(' ', '-')}/{emoji.code}.png",
        "text": texts[1],
        "captions": texts,
        "concept": emoji.concept,
        "concept_zh": emoji.label_zh,
        "style": style,
        "code": emoji.code,
        "group": emoji.group,
        "keywords": list(emoji.keywords),
        "keywords_zh": list(emoji.keywords_zh),
        "aliases": list(emoji.aliases),
        "aliases_zh": list(emoji.aliases_zh),
    }


def _without_twins(rows: list[dict[str, Any]], found: dict[Source, dict[str, bytes]]) -> list[dict[str, Any]]:
    """Drop held-out pictures that are equal to a training picture of another concept."""
    data = {(source.style, code): image for source, images in found.items() for code, image in images.items()}
    trained = {data[row["style"], row["code"]] for row in rows if row["part"] == "train"}
    return [row for row in rows if row["part"] == "train" or data[row["style"], row["code"]] not in trained]


def _render_all(rows: list[dict[str, Any]], found: dict[Source, dict[str, bytes]], out: Path, size: int) -> None:
    data = {(source.style, code): image for source, images in found.items() for code, image in images.items()}
    jobs = [
        (
            data[row["style"], row["code"]],
            out / row["part"] / row["file_name"],
            out / "originals" / row["file_name"],
            size,
        )
        for row in rows
    ]
    for folder in {path.parent for _, *paths, _ in jobs for path in paths}:
        folder.mkdir(parents=True)
    with get_context("spawn").Pool() as pool:
        pool.starmap(_render_one, jobs, chunksize=64)


def _render_one(data: bytes, path: Path, original: Path, size: int) -> None:
    image = render_transparent(data, size)
    image.save(original)
    on_white(image).save(path)


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    for part in ("train", "held_out"):
        lines = [{k: v for k, v in row.items() if k != "part"} for row in rows if row["part"] == part]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (out / part / "metadata.jsonl").write_text(text, encoding="utf-8")
    pairs = {(row["concept"], row["style"]) for row in rows if row["part"] == "held_out"}
    split = {
        "held_out_concepts": list(HELD_OUT_CONCEPTS),
        "held_out_pairs": sorted(pair for pair in pairs if pair[0] not in HELD_OUT_CONCEPTS),
    }
    (out / "split.json").write_text(json.dumps(split, indent=1, ensure_ascii=False), encoding="utf-8")
    credits = [f"- {source.credit} (npm {source.package})\n" for source in SOURCES]
    credits.append(f"- {NAMES_CREDIT} (npm {NAMES})\n")
    (out / "NOTICE").write_text("The pictures and captions were made from:\n" + "".join(credits), encoding="utf-8")
    shown = random.Random(0).sample(rows, min(192, len(rows)))
    images: list[Image.Image] = [Image.open(out / row["part"] / row["file_name"]) for row in shown]
    contact_sheet(images, 16, [row["text"] for row in shown]).save(out / "contact_sheet.png")


if __name__ == "__main__":
    sys.exit(main())
