"""The two sets that are compared: pictures that lie in a folder, or that a model makes from captions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from latentdiff.config.model import GenerationConfig
from latentdiff.data.archives import open_container
from latentdiff.data.layouts import Row, read_layout
from latentdiff.errors import InputError
from latentdiff.images.decoding import decode, fit, measure
from latentdiff.model_hash import hash_model
from latentdiff.pipeline import LatentDiffusionPipeline

AT_ONCE = 16


class Pictures(Protocol):
    """uint8 [B, 3, R, R] a batch, with a caption each or none at all; `source` tells a reader what they are."""

    @property
    def source(self) -> dict[str, Any]: ...
    @property
    def captions(self) -> list[str] | None: ...
    @property
    def resolution(self) -> int: ...
    def __len__(self) -> int: ...
    def batches(self) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class FolderPictures:
    """Rows of a folder, zip or tar, cut to the centre square and brought to `resolution`."""

    path: Path
    rows: list[Row]
    resolution: int

    @property
    def source(self) -> dict[str, Any]:
        return {"path": str(self.path), "count": len(self)}

    @property
    def captions(self) -> list[str] | None:
        return [row.captions[0] for row in self.rows] if all(row.captions for row in self.rows) else None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self) -> Iterator[Tensor]:
        for k in range(0, len(self.rows), AT_ONCE):
            part = [fit(decode(row.read(), row.where), self.resolution) for row in self.rows[k : k + AT_ONCE]]
            yield torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in part])


@dataclass(frozen=True)
class ModelPictures:
    """What a model makes of captions, picture k from seed + k."""

    pipe: LatentDiffusionPipeline
    captions: list[str]
    settings: GenerationConfig
    seed: int

    @property
    def source(self) -> dict[str, Any]:
        assert self.pipe.source is not None
        return {
            "model": str(self.pipe.folder),
            "model_hash": hash_model(self.pipe.source),
            "count": len(self),
            **self.settings.model_dump(),
            "seed": self.seed,
        }

    @property
    def resolution(self) -> int:
        return self.pipe.default_size

    def __len__(self) -> int:
        return len(self.captions)

    def batches(self) -> Iterator[Tensor]:
        for k in range(0, len(self), AT_ONCE):
            made = self.pipe(
                self.captions[k : k + AT_ONCE], seed=self.seed + k, output_type="pt", **self.settings.model_dump()
            )
            yield (made.images.cpu() * 255).round().to(torch.uint8)


def read_pictures(path: Path) -> list[Row]:
    """The pictures of a folder, zip or tar, whether captioned or not. Raises InputError when there is none."""
    rows = read_layout(open_container(path)).rows
    if not rows:
        raise InputError(f"{path} lists no pictures; add some, or give another folder")
    return rows


def short_sides(rows: list[Row]) -> list[int]:
    """Pixels of each picture's shorter side. Raises InputError for a file that is not an image."""
    return [min(measure(row.read(), row.where)) for row in rows]


def size_notes(pictures: FolderPictures) -> list[str]:
    """A note when pictures are smaller than the size they are compared at, or larger while others are not."""
    sides, resolution = short_sides(pictures.rows), pictures.resolution
    enlarged, reduced = (sum(map(test, sides)) for test in (resolution.__gt__, resolution.__lt__))
    where = f"of {len(sides)} pictures in {pictures.path}"
    notes = []
    if enlarged:
        notes.append(
            f"{enlarged} {where} are smaller than {resolution} pixels and were enlarged; better leave them out"
        )
    if 0 < reduced < len(sides):
        notes.append(f"{reduced} {where} are larger than {resolution} pixels and were reduced, others were not")
    return notes


def choose_rows(path: Path, count: int | None, seed: int) -> list[Row]:
    """`count` captioned pictures (all when None) in an order drawn by `seed`.

    Raises InputError for a picture without a caption, and when there are fewer.
    """
    rows = read_pictures(path)
    for row in rows:
        if not row.captions:
            raise InputError(f"{row.where} has no caption; see all such with: latentdiff data check {path}")
    if count is not None and not 1 <= count <= len(rows):
        raise InputError(f"num={count} must be from 1 to {len(rows)}, the pictures in {path}; try {len(rows)}")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[k] for k in order[:count]]
