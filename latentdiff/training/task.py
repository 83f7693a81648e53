"""`Task`, the interface of training tasks to the loop, and their evaluation across processes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from latentdiff.training.samples import Samples


@dataclass
class Share:
    """The part of an evaluation that one process computes.

    figures: sum and count of each metric. pictures: samples in [-1, 1], on the CPU, by index. captions: captions of
    samples, by the same index.
    """

    figures: dict[str, tuple[float, float]] = field(default_factory=dict)
    pictures: dict[int, Tensor] = field(default_factory=dict)
    captions: dict[int, str] = field(default_factory=dict)
    failure: str = ""

    def add(self, name: str, value: float, count: float = 1) -> None:
        """Add one value of a metric, or the sum of `count` values."""
        total, number = self.figures.get(name, (0.0, 0.0))
        self.figures[name] = (total + value, number + count)


class Data(Protocol):
    """Items by (row, draw). buckets, pictures: one per row; rows of one bucket can share a batch."""

    @property
    def buckets(self) -> list[int]: ...

    @property
    def pictures(self) -> list[tuple[str, str]]: ...

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]: ...


class Task(Protocol):
    """The part of training that differs between a VAE, a text encoder and a denoiser.

    `collate(items)` is a batch, and `module(batch)` returns named scalar losses, of which `loss` is minimised.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def data(self) -> Data: ...

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of the data's items; called by the loader, in its processes if it has any."""

    def evaluate(self, rank: int, world: int) -> Share:
        """The share of this process in the held-out metrics and samples, computed with the averaged weights."""

    def save(self, folder: Path) -> None:
        """Write the module's weights as a usable model."""


@dataclass(frozen=True)
class Findings:
    """Combined shares: means of the metrics, samples and failures."""

    figures: dict[str, float]
    samples: Samples | None
    failures: list[str]


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def evaluate(task: Task, accelerator: Accelerator) -> Findings:
    """Evaluate in every process; a share that fails is reported and the others are used."""
    try:
        with torch.no_grad(), accelerator.autocast():
            share = task.evaluate(accelerator.process_index, accelerator.num_processes)
    except Exception as error:
        share = Share(failure=reason(error))
    shares: list[Share] = gather_object([share])
    names = dict.fromkeys(name for s in shares for name in s.figures)
    totals = {name: [s.figures[name] for s in shares if name in s.figures] for name in names}
    figures = {name: sum(v for v, _ in parts) / sum(n for _, n in parts) for name, parts in totals.items()}
    pictures = {index: picture for s in shares for index, picture in s.pictures.items()}
    captions = {index: caption for s in shares for index, caption in s.captions.items()}
    order = sorted(pictures)
    samples = Samples.of([pictures[k] for k in order], [captions[k] for k in order if k in captions]) if order else None
    return Findings(figures, samples, [s.failure for s in shares if s.failure])
