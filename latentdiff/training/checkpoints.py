"""Write and find checkpoints: written under a temporary name, hashed and renamed; the last two are kept."""

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME, extract_model_from_parallel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from latentdiff.errors import InputError, LatentDiffError
from latentdiff.files import sync
from latentdiff.training.run_folder import RunFolder

KEPT = 2
MANIFEST = "manifest.json"
OF_MANY = "module."  # DistributedDataParallel's prefix of each name
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError, CheckpointException)


def name_plainly(models: list[nn.Module], weights: list[dict[str, Tensor]], _: str) -> None:
    """Hook before saving: names as in one process, and no frozen weights, which are read from the base model.

    Sharded weights are not in `weights`.
    """
    for model, state in zip(models, weights, strict=False):
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        kept = {name.removeprefix(OF_MANY): value for name, value in state.items() if name not in frozen}
        state.clear()
        state.update(kept)


def into_plain(models: list[nn.Module], folder: str) -> None:
    """Hook before loading: unwrap the modules. Raises InputError if trained weights are missing."""
    models[:] = [extract_model_from_parallel(model) for model in models]
    for model in models:
        with safe_open(Path(folder) / SAFE_WEIGHTS_NAME, "pt") as opened:
            saved = set(opened.keys())
        for name, p in model.named_parameters():
            if p.requires_grad and name not in saved:
                raise InputError(f"{folder} has no weights for {name}, which is trained; use another run.output")


@dataclass
class Progress:
    """Progress of a run: optimiser steps taken, and the best held-out loss.

    pictures_a_step: together with `step`, determines the position in the data.
    """

    pictures_a_step: int
    step: int = 0
    best: float = float("inf")
    evaluations_since_best: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError if the run used another number of pictures per step, which would change the results."""
        if state["pictures_a_step"] != self.pictures_a_step:
            raise InputError(
                f"the run used {state['pictures_a_step']} pictures per step and now {self.pictures_a_step} are set; "
                "keep data.batch_size times run.gradient_accumulation_steps times processes, or use another run.output"
            )
        for key, value in state.items():
            setattr(self, key, value)


def newest_good(run: RunFolder) -> Path | None:
    """The newest checkpoint whose files match their hashes, or None; warns of each damaged one."""
    for folder in run.checkpoints():
        if (problem := _problem(folder)) is None:
            return folder
        warnings.warn(f"{folder} is skipped: {problem}", stacklevel=2)
    return None


def save_checkpoint(accelerator: Accelerator, run: RunFolder, step: int) -> None:
    """Write the state of everything that `accelerator` prepared, then the hashes, then rename.

    Raises LatentDiffError if writing fails, for instance on a full disk; earlier checkpoints are kept.
    """
    with Staged(accelerator.is_main_process, run.checkpoint(step)) as staged:
        accelerator.wait_for_everyone()
        accelerator.save_state(str(staged))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_manifest(staged, step)
    if accelerator.is_main_process:
        for old in run.checkpoints()[KEPT:]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


class Staged:
    """A temporary folder that replaces `final` on success and is removed after an error."""

    def __init__(self, mine: bool, final: Path) -> None:
        self.mine, self.final = mine, final
        self.partial = final.with_name(f"{final.name}.partial")

    def __enter__(self) -> Path:
        if self.mine:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: Any) -> None:
        if not self.mine:
            return
        if error is None:
            self._replace()
            return
        shutil.rmtree(self.partial, ignore_errors=True)
        if isinstance(error, WRITE_ERRORS) and not isinstance(error, LatentDiffError):
            reason = " ".join(str(error).split())[:200]
            raise LatentDiffError(
                f"{self.final} could not be written ({reason}); earlier checkpoints are intact: free space and "
                "continue with --resume"
            ) from error

    def _replace(self) -> None:
        for file in self.partial.rglob("*"):
            sync(file)
        old = self.final.with_name(f"{self.final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.final.exists():
            self.final.rename(old)
        self.partial.rename(self.final)
        sync(self.final.parent)
        shutil.rmtree(old, ignore_errors=True)


def _write_manifest(folder: Path, step: int) -> None:
    files = {str(p.relative_to(folder)): _hash(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / MANIFEST).write_text(json.dumps({"step": step, "sha256": files}, indent=1), encoding="utf-8")


def _problem(folder: Path) -> str | None:
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        changed = [name for name, value in hashes.items() if _hash(folder / name) != value]
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{changed[0]} does not match its hash" if changed else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
