"""SIGTERM and Ctrl-C: finish the step and save before the process ends."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from latentdiff.training.processes import PATIENCE, process_state


class StopSignal:
    """Context manager in which SIGTERM and the first Ctrl-C set `signal` instead of ending the process."""

    def __init__(self) -> None:
        self.signal = 0
        # A CPU group, so that no step waits for the GPU.
        many = process_state().num_processes > 1
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE) if many else None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def seen_by_any(self) -> int:
        """The signal that any process received, 0 for none: all processes must stop at the same step."""
        if self.group is None:
            return self.signal
        sent = torch.tensor([self.signal])
        dist.all_reduce(sent, dist.ReduceOp.MAX, group=self.group)
        return int(sent)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
