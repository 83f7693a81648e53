"""Images that may share a batch, and which of them the next step takes."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from torch import Tensor

from latentdiff.denoiser import Row
from latentdiff.hires import Hires
from latentdiff.inputs import Inputs
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.serving.job import ImageRequest, Job, Loras

SIZES = (8, 4, 2, 1)  # rows in a batch; larger batches hardly increase a U-Net's throughput
MAX_ROWS = SIZES[0]


class GroupKey(NamedTuple):
    """The properties that images must have in common to share a batch, besides the number of tokens.

    size: (width, height) in pixels.
    """

    model: str
    loras: Loras
    size: tuple[int, int]
    tile: int | None = None
    seamless: str | None = None

    @classmethod
    def of(cls, request: ImageRequest, size: tuple[int, int]) -> Self:
        """The key of a request's images while they are sampled at `size`."""
        settings = request.settings
        return cls(request.model, request.loras, size, settings.get("tile"), settings.get("seamless"))


@dataclass(eq=False)
class EngineImage:
    """One image of a job in the engine.

    arguments: of `read_inputs`. hires: its second pass; None during that pass and for images without one. pipe, inputs,
    row: None until a pass is started. first_position: in the plan, where the pass started. steps_before: in earlier
    passes.
    """

    job: Job
    index: int
    arguments: dict[str, Any] = field(init=False)
    hires: Hires | None = field(init=False)
    pipe: LatentDiffusionPipeline | None = None
    inputs: Inputs | None = None
    row: Row | None = None
    first_position: int = 0
    steps_before: int = 0
    x0: Tensor | None = None

    def __post_init__(self) -> None:
        self.arguments, self.hires = self.job.request.arguments(self.index), self.job.request.hires

    def begin_pass(self, pipe: LatentDiffusionPipeline, inputs: Inputs, row: Row) -> None:
        """The pipeline has created the row."""
        self.pipe, self.inputs, self.row, self.first_position = pipe, inputs, row, row.state.position

    def begin_second_pass(self, enlarged: Any) -> None:
        """Continue from the enlarged image, or latents [1, C, h, w], of the first pass."""
        assert self.hires is not None
        self.steps_before = self.steps
        self.arguments, self.hires = self.hires.second_pass(self.arguments, enlarged), None
        self.row = None

    @property
    def steps(self) -> int:
        """The number of evaluations so far, in all passes."""
        made = self.row.state.position - self.first_position if self.row else 0
        return self.steps_before + made

    @property
    def total_steps(self) -> int:
        """The number of evaluations of all passes; that of a second pass that has not started is an estimate."""
        assert self.row is not None
        own = len(self.row.state.plan) - self.first_position
        if self.hires is None:
            return self.steps_before + own
        first_steps = self.job.request.steps
        return own + round(own * self.hires.strength * (self.hires.steps or first_steps) / first_steps)


@dataclass(eq=False)
class Group:
    """The images of one key: waiting ones in order of arrival, active ones with the least recently advanced first."""

    key: GroupKey
    waiting: deque[EngineImage] = field(default_factory=deque)
    active: list[EngineImage] = field(default_factory=list)
    last_turn: float = field(default_factory=time.monotonic)

    @property
    def jobs(self) -> set[Job]:
        return {item.job for item in (*self.active, *self.waiting)}

    def next_batch(self, evaluations: int | None = None) -> list[EngineImage]:
        """The least recently advanced images of one shape and token count: 8, 4, 2 or 1 of them.

        evaluations: take as many as fit into this number of network evaluations instead, at least one; a guided row
        needs two or more.
        """
        same = [item for item in self.active if _shape(item) == _shape(self.active[0])]
        chosen = _fitting(same, evaluations) if evaluations else same[: next(n for n in SIZES if n <= len(same))]
        self.active = [*(item for item in self.active if item not in chosen), *chosen]
        return chosen

    def remove(self, job: Job) -> list[EngineImage]:
        """Remove all images of a job, and return them."""
        gone = [item for item in (*self.waiting, *self.active) if item.job is job]
        for item in gone:
            (self.active if item in self.active else self.waiting).remove(item)
        return gone


def _shape(item: EngineImage) -> tuple[object, ...]:
    """The properties that the rows of a batch have in common: the shape of the latents and the number of tokens."""
    assert item.row is not None
    return (*item.row.state.latents.shape, item.row.tokens)


def _fitting(items: list[EngineImage], evaluations: int) -> list[EngineImage]:
    chosen: list[EngineImage] = []
    used = 0
    for item in items:
        assert item.row is not None
        used += item.row.evaluations
        if used > evaluations and chosen:
            break
        chosen.append(item)
    return chosen
