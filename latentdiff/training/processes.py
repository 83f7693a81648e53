"""The processes of a run: rank, count, and functions that only the first one calls."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from latentdiff.config.train import RunConfig, TrainConfig
from latentdiff.errors import InputError
from latentdiff.runtime.device import pick_dtype
from latentdiff.training.run_folder import RunFolder

T = TypeVar("T")
AnyConfig = TypeVar("AnyConfig", bound=TrainConfig)

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


def with_precision(config: AnyConfig, resumed: RunFolder | None = None) -> AnyConfig:
    """The config with "auto" replaced by the precision of the run to resume, or else by the usual one here."""
    if config.run.mixed_precision != "auto":
        return config
    begun = {} if resumed is None else yaml.safe_load(resumed.config.read_text(encoding="utf-8"))["run"]
    precision = begun.get("mixed_precision", usual_precision())
    return config.model_copy(update={"run": config.run.model_copy(update={"mixed_precision": precision})})


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
