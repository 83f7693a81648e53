"""Which of how many processes this is."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState

PATIENCE = timedelta(days=1)  # of processes that wait for one: the first checks and encodes all pictures alone


def process_state() -> PartialState:
    """accelerate's view of it, made once; several processes without an accelerator talk over gloo."""
    return PartialState(cpu=on_many_cpus(), timeout=PATIENCE)


def on_many_cpus() -> bool:
    """Whether a launcher started this process among others on a machine without an accelerator."""
    return "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
