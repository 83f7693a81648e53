"""What the loop asks of a task, and a task of its pictures."""

from pathlib import Path
from typing import Any, Protocol

from torch import nn

from latentdiff.training.evaluation import Share


class Data(Protocol):
    """Pictures by (row, draw). `buckets`: of each row, which rows it can share a batch with."""

    @property
    def buckets(self) -> list[int]: ...

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]: ...


class Task(Protocol):
    """What differs between training a VAE, a text encoder and a denoiser.

    `module(batch)` returns named losses, each a scalar; `loss` is the one that is minimised. A batch holds what the
    data's items hold, and `draw` [B], the number of each draw.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def data(self) -> Data: ...

    def evaluate(self, rank: int, world: int) -> Share:
        """This process's share of the held-out figures and pictures, made with the averaged weights."""

    def save(self, folder: Path) -> None:
        """Write what the module holds as a model that can be used."""
