"""The state of a run on disk: staged under another name, renamed when whole, the old one removed after."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latentdiff.files import sync
from latentdiff.training.ema import EMA


@dataclass
class Progress:
    """How far the run is: optimiser steps taken. The place in the data follows from it."""

    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def newest_checkpoint(output: Path) -> Path | None:
    """The run's saved state, or None; a staged one that was never finished is not looked at."""
    for name in ("checkpoint", "checkpoint.old"):
        if (output / name).is_dir():
            return output / name
    return None


def save_checkpoint(accelerator: Accelerator, task: Any, ema: EMA, output: Path) -> None:
    """Write the run's state to `checkpoint/` and the averaged weights as a usable model to `model/`."""
    staged = output / "checkpoint.partial"
    if accelerator.is_main_process:
        shutil.rmtree(staged, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(staged))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    _replace(staged, output / "checkpoint")
    model = output / "model.partial"
    shutil.rmtree(model, ignore_errors=True)
    with ema.applied():
        task.save(model)
    _replace(model, output / "model")


def _replace(staged: Path, final: Path) -> None:
    for file in staged.rglob("*"):
        sync(file)
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    staged.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)
