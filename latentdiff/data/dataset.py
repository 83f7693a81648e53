"""Captioned pictures as training wants them: rows, then tensors."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.config.train import DataConfig
from latentdiff.data.captions import choose_caption, prefixed
from latentdiff.data.layouts import Row, read_layout
from latentdiff.data.sources import open_source
from latentdiff.errors import InputError
from latentdiff.images.decoding import decode, fit, to_pixels

HELD_OUT_EVERY = 20


def read_rows(source: str | Path, config: DataConfig) -> list[Row]:
    """The pictures of a source that `config` keeps, those shown several times an epoch as often.

    Raises InputError when there is none, and for a picture without a caption.
    """
    layout = read_layout(open_source(source), config.caption_template)
    rows = [row for row in layout.rows if row.name not in config.skip]
    rows = [row for row in rows if all(row.columns.get(column) in keep for column, keep in config.keep.items())]
    if not rows:
        raise InputError(
            f"{source} has no picture{' that data.keep lists' if config.keep else ''}; add some or keep more"
        )
    if config.prefix:
        rows = [
            replace(row, captions=tuple(prefixed(caption, config.prefix) for caption in row.captions or [""]))
            for row in rows
        ]
    for row in rows:
        if not row.captions:
            raise InputError(f"{row.where} has no caption; see all such with: latentdiff data check {source}")
    return [row for row in rows for _ in range(row.repeats)]


def read_parts(config: DataConfig, measure: bool = False) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, as `DataConfig` says. Raises InputError for none of these if `measure`."""
    train = read_rows(config.train, config)
    if config.held_out is not None:
        return train, read_rows(config.held_out, config)
    names = sorted({row.name for row in train})
    if measure and len(names) < HELD_OUT_EVERY:
        raise InputError(f"{config.train} has {len(names)} pictures; give {HELD_OUT_EVERY} or more, or data.held_out")
    held_out = set(names[::HELD_OUT_EVERY]) if len(names) >= HELD_OUT_EVERY else set()
    first = {row.name: row for row in train if row.name in held_out}
    return [row for row in train if row.name not in held_out], list(first.values())


def load_pixels(row: Row, resolution: int, background: str = "white") -> Tensor:
    """float32 [3, resolution, resolution] in [-1, 1]."""
    return to_pixels(fit(decode(row.read(), row.where, background), resolution))


class CaptionedImages(torch.utils.data.Dataset[dict[str, Any]]):
    """Pictures, the middle square of each, and captions by (row, draw).

    The draw seeds the choice of caption and the flip, so a run can be resumed.
    Items: `pixels` [3, R, R] in [-1, 1], `caption`, `row`, `draw`.
    """

    def __init__(self, rows: list[Row], config: DataConfig) -> None:
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
