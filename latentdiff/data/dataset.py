"""Datasets of pictures with captions: which rows to train on, and their pixels."""

import random
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.config.data import DataConfig
from latentdiff.data.captions import choose_caption, prefixed
from latentdiff.data.layouts import DataRow, read_layout
from latentdiff.data.sources import open_source
from latentdiff.errors import InputError, did_you_mean
from latentdiff.images.decoding import decode, to_pixels
from latentdiff.images.fit import centre_square

HELD_OUT_EVERY = 20


def read_rows(source: str | Path, config: DataConfig) -> list[DataRow]:
    """The rows of a source that `config` selects; a picture with ten repeats per epoch has ten rows.

    Raises InputError if there are none, and for a picture without a caption.
    """
    layout = read_layout(open_source(source), config.caption_template)
    rows = _selected([row for row in layout.rows if row.name not in config.skip], config.keep, source)
    if not rows:
        raise InputError(f"{source} has no pictures{' that data.keep selects' if config.keep else ''}; add some")
    if config.prefix:
        rows = [
            replace(row, captions=tuple(prefixed(caption, config.prefix) for caption in row.captions or [""]))
            for row in rows
        ]
    for row in rows:
        if not row.captions:
            command = shlex.join(["latentdiff", "data", "check", str(source)])
            raise InputError(f"{row.where} has no caption; list all such pictures with {command}")
    return [row for row in rows for _ in range(row.repeats)]


def _selected(rows: list[DataRow], keep: dict[str, tuple[str, ...]], source: str | Path) -> list[DataRow]:
    """Rows whose columns have one of the values in `keep`, compared as text. Raises InputError for unknown columns."""
    for column in keep:
        if rows and not any(column in row.columns for row in rows):
            columns = {name for row in rows for name in row.columns}
            raise InputError(f"data.keep: {source} has no column {column!r}; {did_you_mean(column, columns)}")
    return [row for row in rows if all(str(row.columns.get(column)) in values for column, values in keep.items())]


def read_parts(config: DataConfig, measure: bool = False) -> tuple[list[DataRow], list[DataRow]]:
    """The training rows and the held-out rows, as `DataConfig` describes.

    Without `data.held_out`, every 20th picture is held out. With fewer than 20 pictures there are no held-out rows, and
    InputError is raised if `measure` is set.
    """
    train = read_rows(config.train, config)
    if config.held_out is not None:
        return train, read_rows(config.held_out, config)
    names = sorted({row.name for row in train})
    if measure and len(names) < HELD_OUT_EVERY:
        raise InputError(f"{config.train} has {len(names)} pictures; give {HELD_OUT_EVERY} or more, or data.held_out")
    held_out = set(names[::HELD_OUT_EVERY]) if len(names) >= HELD_OUT_EVERY else set()
    first = {row.name: row for row in train if row.name in held_out}
    return [row for row in train if row.name not in held_out], list(first.values())


def load_pixels(row: DataRow, resolution: int, background: str = "white") -> Tensor:
    """The centre square of a picture: float32 [3, resolution, resolution] in [-1, 1]."""
    return to_pixels(centre_square(decode(row.read(), row.where, background), resolution))


class CaptionedImages(torch.utils.data.Dataset[dict[str, Any]]):
    """Centre squares of pictures and captions by (row, draw), where the draw seeds the choice of caption and the flip.

    Items: `pixels` [3, R, R] in [-1, 1], `caption`, `row`, `draw`.
    """

    def __init__(self, rows: list[DataRow], config: DataConfig) -> None:
        self.rows, self.config = rows, config
        self.buckets, self.pictures = [0] * len(rows), [row.picture for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, draw = item
        row, rng = self.rows[index], random.Random(f"{index}/{draw}")
        pixels = load_pixels(row, self.config.resolution, self.config.background)
        if rng.random() < self.config.flip:
            pixels = pixels.flip(-1)
        return {"pixels": pixels, "caption": choose_caption(row, self.config, rng), "row": index, "draw": draw}
