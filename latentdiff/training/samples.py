"""Sample images on disk: one PNG grid per evaluation, which also stores the caption of each cell."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from latentdiff.files import atomic_path
from latentdiff.images.image_grid import image_grid

COLUMNS = 8
CHUNK = "captions"  # a JSON list, in a PNG text chunk


@dataclass(frozen=True)
class Samples:
    """Images in rows of up to eight, and their captions, if they have any."""

    grid: Image.Image
    captions: list[str]

    @classmethod
    def of(cls, pixels: list[Tensor], captions: list[str]) -> "Samples":
        """pixels: N of [3, H, W] in [-1, 1]."""
        return cls(image_grid(torch.stack(pixels), min(COLUMNS, len(pixels))), captions)

    def save(self, path: Path) -> None:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(CHUNK, json.dumps(self.captions))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            self.grid.save(partial, format="PNG", pnginfo=chunks)

    def images(self) -> list[Image.Image]:
        """The images with captions, cropped from the grid."""
        columns = min(COLUMNS, len(self.captions))
        rows = -(-len(self.captions) // COLUMNS)
        width, height = self.grid.width // columns, self.grid.height // rows
        corners = [(k % columns * width, k // columns * height) for k in range(len(self.captions))]
        return [self.grid.crop((x, y, x + width, y + height)) for x, y in corners]


def read_samples(path: Path) -> Samples:
    """Read a file of `Samples.save`; other PNGs have no captions. Raises OSError if the file is not a PNG."""
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        try:
            captions = json.loads(getattr(image, "text", {}).get(CHUNK, "[]"))
        except ValueError:
            captions = []
        valid = isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)
        return Samples(image.convert("RGB"), captions if valid else [])
