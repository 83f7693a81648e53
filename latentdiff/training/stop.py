"""A run that is asked to end saves first."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator


class StopRequest:
    """Inside, SIGTERM and the first Ctrl-C set `signal`, the signal's number, in place of ending the process."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def seen_by_any(self, accelerator: Accelerator) -> int:
        """The signal that this or another process was sent, 0 for none: all of them must stop at the same step."""
        if accelerator.num_processes == 1:
            return self.signal
        sent = torch.tensor([self.signal], device=accelerator.device)
        return int(accelerator.gather(sent).max())

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
