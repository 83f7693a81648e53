"""A folder of captioned images: `metadata.jsonl` beside the pictures, one JSON object a line."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from latentdiff.errors import InputError

MAX_PIXELS = 64 * 1024 * 1024
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # Pillow knows more, some run other programs


@dataclass(frozen=True)
class Row:
    """One picture: where it lies, and the captions any of which describes it."""

    path: Path
    captions: tuple[str, ...]
    columns: dict[str, Any]


def read_folder(folder: Path, keep: Mapping[str, Sequence[str]] = MappingProxyType({})) -> list[Row]:
    """Read `metadata.jsonl`: `file_name`, and `text` or a list of `captions`; only rows whose columns `keep` lists.

    Raises InputError for a folder without the file, a broken line, a path that leaves the folder, a picture that
    is not there, and when nothing is left.
    """
    metadata = folder / "metadata.jsonl"
    if not metadata.is_file():
        raise InputError(f"{folder} holds no metadata.jsonl; write one line of JSON a picture with file_name and text")
    lines = metadata.read_text(encoding="utf-8").splitlines()
    rows = [_row(folder, line, f"{metadata}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    rows = [row for row in rows if all(row.columns.get(column) in values for column, values in keep.items())]
    if not rows:
        raise InputError(f"{metadata} has no row{' that data.keep lists' if keep else ''}; add pictures or keep more")
    return rows


def _row(folder: Path, line: str, where: str) -> Row:
    try:
        columns = json.loads(line)
        path = folder / columns["file_name"]
        captions = tuple(columns.get("captions") or [columns["text"]])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: {error!r}; each line needs the JSON keys file_name and text") from error
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{where}: file_name={columns['file_name']!r} leaves the folder; use a path inside it")
    if not path.is_file():
        raise InputError(f"{where}: {path} does not exist; restore the picture or remove the line")
    return Row(path, captions, columns)


def load_image(path: Path, resolution: int) -> Image.Image:
    """Decode, turn by EXIF, lay transparency on white, resize the short side and crop the centre.

    Returns an RGB image of `resolution` squared. Raises InputError for what is no image or is too large to decode.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"{path}: {opened.width}x{opened.height} is over {MAX_PIXELS} pixels; shrink it first")
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return ImageOps.fit(image.convert("RGB"), (resolution, resolution), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error}); replace it or remove its line") from error


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image to float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)


class CaptionedImages(torch.utils.data.Dataset[dict[str, Any]]):
    """Pictures and captions by (row, draw): the draw seeds the choice of caption and the flip, so a run can be resumed.

    Items: `pixels` [3, R, R] in [-1, 1], `caption`, `row`.
    """

    def __init__(self, rows: list[Row], resolution: int, flip: float = 0.0) -> None:
        self.rows = rows
        self.resolution = resolution
        self.flip = flip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, draw = item
        rng = random.Random(f"{index}/{draw}")
        image = load_image(self.rows[index].path, self.resolution)
        if rng.random() < self.flip:
            image = ImageOps.mirror(image)
        return {"pixels": to_pixels(image), "caption": rng.choice(self.rows[index].captions), "row": index}
