"""The processes of a run: rank, count, and functions that only the first one calls."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # how long others wait for the first process, which checks and encodes all pictures


def process_state() -> PartialState:
    """accelerate's process state; several processes without an accelerator communicate over gloo."""
    return PartialState(cpu=on_many_cpus(), timeout=PATIENCE)


def on_main_process(make: Callable[[], T]) -> T:
    """Call `make()` in the first process only, and return its result in every process."""
    state = process_state()
    made = [make() if state.is_main_process else None]
    broadcast_object_list(made)
    return made[0]  # type: ignore[return-value]


def on_many_cpus() -> bool:
    """Whether a launcher started this process among others on a machine without an accelerator."""
    return "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
