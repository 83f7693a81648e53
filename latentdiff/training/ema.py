"""Exponential moving average of the trained weights, which is evaluated and saved as the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """Average of the trainable weights of `module`; the decay at update n is min(decay, (1 + n) / (10 + n))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.live = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().float().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.float() for p in self.live], 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager in which the module has the averaged weights."""
        own = [p.detach().clone() for p in self.live]
        self._write(self.average)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for p, value in zip(self.live, values, strict=True):
            p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)
