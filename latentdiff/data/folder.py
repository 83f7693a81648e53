"""Captioned pictures as training wants them: rows, then tensors."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor

from latentdiff.data.containers import open_container
from latentdiff.data.images import decode, fit, to_pixels
from latentdiff.data.layouts import Row, read_layout
from latentdiff.errors import InputError


def read_rows(path: Path, keep: Mapping[str, Sequence[str]] = MappingProxyType({})) -> list[Row]:
    """The pictures of a folder, zip or tar, those shown several times an epoch as often; only rows that `keep` lists.

    Raises InputError when there is none, and for a picture without a caption.
    """
    rows = read_layout(open_container(path)).rows
    rows = [row for row in rows if all(row.columns.get(column) in values for column, values in keep.items())]
    if not rows:
        raise InputError(f"{path} has no picture{' that data.keep lists' if keep else ''}; add some or keep more")
    for row in rows:
        if not row.captions:
            raise InputError(f"{row.where} has no caption; see all such with: latentdiff data check {path}")
    return [row for row in rows for _ in range(row.repeats)]


def load_pixels(row: Row, resolution: int) -> Tensor:
    """float32 [3, resolution, resolution] in [-1, 1]."""
    return to_pixels(fit(decode(row.read(), row.where), resolution))


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
        row, rng = self.rows[index], random.Random(f"{index}/{draw}")
        image = fit(decode(row.read(), row.where), self.resolution)
        if rng.random() < self.flip:
            image = ImageOps.mirror(image)
        return {"pixels": to_pixels(image), "caption": rng.choice(row.captions), "row": index}
