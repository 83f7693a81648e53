"""An exponential moving average of the weights, the ones that are saved for use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """Average of what is trained in `module`; the decay warms up: min(decay, (1 + n) / (10 + n)) at update n."""

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
        """Inside, the module holds the averaged weights; afterwards its own again."""
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
