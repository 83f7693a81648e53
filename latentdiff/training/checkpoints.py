"""The state of a run on disk: staged under another name, hashed, renamed when whole; the one before it stays."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import SAFE_WEIGHTS_NAME, extract_model_from_parallel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from latentdiff.errors import InputError, LatentDiffError
from latentdiff.files import atomic_path, sync

KEPT = 2
MANIFEST = "manifest.json"
REPORT = "data.json"  # the first file of a run
CONFIG = "config.yaml"
FOLDER_STRIP = "data.png"  # a few pictures of the folder
OF_MANY = "module."  # what DistributedDataParallel puts before each name
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError, CheckpointException)


def name_plainly(models: list[nn.Module], weights: list[dict[str, Tensor]], _: str) -> None:
    """Before saving: names as in one process, and no weights that are not trained, which come from where the run began.

    Shards are not in `weights`.
    """
    for model, state in zip(models, weights, strict=False):
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        kept = {name.removeprefix(OF_MANY): value for name, value in state.items() if name not in frozen}
        state.clear()
        state.update(kept)


def into_plain(models: list[nn.Module], folder: str) -> None:
    """Before loading: into the modules themselves, by however many processes. Raises InputError if weights lack."""
    models[:] = [extract_model_from_parallel(model) for model in models]
    for model in models:
        with safe_open(Path(folder) / SAFE_WEIGHTS_NAME, "pt") as opened:
            saved = set(opened.keys())
        for name, p in model.named_parameters():
            if p.requires_grad and name not in saved:
                raise InputError(f"{folder} lacks {name}, which is trained; start another run.output")


@dataclass
class Progress:
    """How far a run is. `step`: optimiser steps taken; `pictures_a_step` makes the place in the data of it."""

    pictures_a_step: int
    step: int = 0
    best: float = float("inf")
    evaluations_since_best: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises InputError when the run took another number of pictures a step: it would be another run."""
        if state["pictures_a_step"] != self.pictures_a_step:
            raise InputError(
                f"the run took {state['pictures_a_step']} pictures a step, now {self.pictures_a_step}; keep "
                "data.batch_size times run.gradient_accumulation_steps times processes, or start another run.output"
            )
        for key, value in state.items():
            setattr(self, key, value)


def checkpoints(output: Path) -> list[Path]:
    """The run's finished checkpoints, newest first."""
    return sorted(output.glob("checkpoints/step-*[0-9]"), reverse=True)


def refuse_another_run(output: Path, resume: bool, task: str) -> None:
    """Raise InputError unless `output` can take this run: new or empty, or with `resume` a begun run of this task."""
    found = checkpoints(output)
    if resume and found and (other := _task(output)) not in (task, None):
        raise InputError(
            f"{output} is a run of task {other}, not {task}; resume it with latentdiff train {output / CONFIG} --resume"
        )
    if resume and not found:
        raise InputError(f"{output} holds no checkpoint to go on from; leave out --resume to start a run there")
    if found and not resume:
        raise InputError(f"{found[0]} is there; go on from it with --resume, or name another folder for a new run")
    if output.is_dir() and not found and not (output / REPORT).exists() and (others := _visible(output)):
        raise InputError(f"{output} holds {others[0].name}, which is not of a run; name a new or an empty folder")


def _task(output: Path) -> str | None:
    """The task of the run in `output`, None if its config does not tell."""
    try:
        config = yaml.safe_load((output / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return str(config["task"]) if isinstance(config, dict) and "task" in config else None


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def newest_good(output: Path) -> Path | None:
    """The newest checkpoint whose files are what was written, or None; warns of each that is not."""
    for folder in checkpoints(output):
        if (problem := _problem(folder)) is None:
            return folder
        warnings.warn(f"{folder} is passed over: {problem}", stacklevel=2)
    return None


def save_checkpoint(accelerator: Accelerator, output: Path, step: int) -> None:
    """Write the state of all that `accelerator` prepared; the files' hashes last, then the name.

    Raises LatentDiffError when it cannot be written, on a full disk say; what was there before stays.
    """
    final = output / "checkpoints" / f"step-{step:08d}"
    with Staged(accelerator.is_main_process, final) as staged:
        accelerator.wait_for_everyone()
        accelerator.save_state(str(staged))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_manifest(staged, step)
    if accelerator.is_main_process:
        for old in checkpoints(output)[KEPT:]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def save_model(output: Path, write: Callable[[Path], None]) -> None:
    """Have `write(folder)` save the usable model; it appears as `model/` when it is whole."""
    with Staged(True, output / "model") as staged:
        write(staged)


class Staged:
    """A folder beside `final` that takes its place if nothing fails, and goes if something does."""

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
                f"{self.final} could not be written ({reason}); what was saved before is whole: make room and go on "
                "with --resume"
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
    with atomic_path(folder / MANIFEST) as path:
        path.write_text(json.dumps({"step": step, "sha256": files}, indent=1), encoding="utf-8")


def _problem(folder: Path) -> str | None:
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        changed = [name for name, value in hashes.items() if _hash(folder / name) != value]
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{changed[0]} is not what was written" if changed else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
