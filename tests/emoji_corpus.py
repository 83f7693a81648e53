"""A corpus of plain shapes, laid out as `examples.emoji.prepare` does."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from examples.emoji.split import CORE

CONCEPTS = {
    "banana": "香蕉", "camera": "相机", "doughnut": "甜甜圈", "fox": "狐狸", "bus": "公交车", "balloon": "气球",
    "bell": "铃铛", "castle": "城堡", "kite": "风筝", "robot": "机器人",
}  # fmt: skip
HUES = ((230, 40, 40), (250, 150, 20), (250, 220, 40), (50, 170, 60), (40, 110, 230), (150, 70, 200))


def shape(number: int, size: int = 128) -> Image.Image:
    """One of many coloured shapes with a small white mark, on transparency."""
    image = Image.new("RGBA", (size, size), (255, 255, 255, 0))
    draw = ImageDraw.Draw(image)
    colour = (*HUES[number % len(HUES)], 255)
    corners = [[(64, 14), (114, 110), (14, 110)], [(14, 20), (114, 20), (114, 108), (14, 108)]]
    if number % 3 == 2:
        draw.ellipse((14, 14, 114, 114), colour)
    else:
        draw.polygon(corners[number % 3], colour)
    draw.ellipse((56, 60, 68, 72), "white")
    return image


def row(concept: str, style: str, number: int, **more: Any) -> dict[str, Any]:
    """A row of metadata.jsonl."""
    zh = CONCEPTS.get(concept, concept)
    captions = [f"{concept}, {style} style", f"a {concept}", zh]
    names = {"concept": concept, "concept_zh": zh, "style": style, "group": "objects", "aliases": [], "aliases_zh": []}
    file_name = f"{style.replace(' ', '-')}/{number}.png"
    return {"file_name": file_name, "text": captions[0], "captions": captions, **names} | more


def write_corpus(folder: Path) -> Path:
    """Each concept in each core style."""
    rows = [row(concept, style, k) for style in CORE for k, concept in enumerate(CONCEPTS)]
    for one in rows:
        path = folder / "originals" / one["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shape(int(path.stem)).save(path)
    (folder / "train").mkdir()
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
    (folder / "train" / "metadata.jsonl").write_text(lines, encoding="utf-8")
    return folder
