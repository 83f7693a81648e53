"""The processes of a run: rank, count, and functions that only the first one calls."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from latentdiff.config.train import RunConfig
from latentdiff.errors import InputError
from latentdiff.runtime.device import pick_dtype

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # timeout while the first process checks and encodes all pictures


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


def usual_precision() -> str:
    """bf16 where `dtype="auto"` is bfloat16; CPUs that emulate it take twice as long with it as in float32."""
    return "bf16" if pick_dtype("auto", process_state().device) == torch.bfloat16 else "no"


def check_launcher(run: RunConfig) -> None:
    """Raise InputError if `accelerate launch` requests a precision or accumulation other than the run's.

    Its defaults, `no` and 1, are in the environment too if nothing was requested; they are not compared.
    """
    for name, own, default in (
        ("mixed_precision", run.mixed_precision, "no"),
        ("gradient_accumulation_steps", str(run.gradient_accumulation_steps), "1"),
    ):
        requested = os.environ.get(f"ACCELERATE_{name.upper()}", default)
        if requested not in (default, own):
            raise InputError(
                f"accelerate's {name}={requested} differs from run.{name}={own}; remove it from the launch command "
                "and its file, or set both to the same value"
            )
