"""Images that may share a batch, and which of them the next step takes."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from latentdiff.denoiser import Row
from latentdiff.images.edit import Canvas
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.serving.job import Job, Loras

SIZES = (8, 4, 2, 1)  # rows in a batch; a U-Net's throughput grows little beyond
MAX_ROWS = SIZES[0]


class GroupKey(NamedTuple):
    """What images must agree in to share a batch, beside the number of tokens. size: (width, height) in pixels."""

    model: str
    loras: Loras
    size: tuple[int, int]


@dataclass(eq=False)
class Picture:
    """One image of a job in the engine.

    pipe, row: None until it is started. canvases: the input image, if any. first_position: in the plan, where it
    started.
    """

    job: Job
    index: int
    pipe: LatentDiffusionPipeline | None = None
    row: Row | None = None
    canvases: list[Canvas] | None = None
    first_position: int = 0
    x0: Tensor | None = None

    @property
    def seed(self) -> int:
        return self.job.request.seed + self.index


@dataclass(eq=False)
class Group:
    """The images of one key: waiting in order of arrival, active with the longest since a step first."""

    key: GroupKey
    waiting: deque[Picture] = field(default_factory=deque)
    active: list[Picture] = field(default_factory=list)
    last_turn: float = field(default_factory=time.monotonic)

    def next_batch(self, evaluations: int | None = None) -> list[Picture]:
        """The images whose last step is longest ago, of one shape and token count: 8, 4, 2 or 1 of them.

        evaluations: take as many as fit into this number of network evaluations instead, at least one; a guided row
        takes two or more.
        """
        same = [picture for picture in self.active if _shape(picture) == _shape(self.active[0])]
        chosen = _fitting(same, evaluations) if evaluations else same[: next(n for n in SIZES if n <= len(same))]
        self.active = [*(picture for picture in self.active if picture not in chosen), *chosen]
        return chosen

    def remove(self, job: Job) -> list[Picture]:
        """Take all images of a job out, and return them."""
        gone = [picture for picture in (*self.waiting, *self.active) if picture.job is job]
        for picture in gone:
            (self.active if picture in self.active else self.waiting).remove(picture)
        return gone


def _shape(picture: Picture) -> tuple[object, ...]:
    """What rows of one batch share: the latents' shape and the number of tokens."""
    assert picture.row is not None
    return (*picture.row.state.latents.shape, picture.row.tokens)


def _fitting(pictures: list[Picture], evaluations: int) -> list[Picture]:
    chosen: list[Picture] = []
    used = 0
    for picture in pictures:
        assert picture.row is not None
        used += picture.row.evaluations
        if used > evaluations and chosen:
            break
        chosen.append(picture)
    return chosen
