"""Which of how many processes this is."""

import os

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """accelerate's view of it, made once; several processes without an accelerator talk over gloo."""
    return PartialState(cpu=on_many_cpus())


def on_many_cpus() -> bool:
    """Whether a launcher started this process among others on a machine without an accelerator."""
    return "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
