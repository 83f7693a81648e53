"""`latentdiff info`: describe a model, LoRA, embedding, image or training run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentdiff.checkpoints.describe import describe, refuse_options
from latentdiff.checkpoints.locate_model import locate
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.recipe import read_any
from latentdiff.training.run_folder import RunFolder

IMAGES = (".png", ".webp", ".jpg", ".jpeg", ".gif", ".mp4")


def run(target: str | None, how: dict[str, Any]) -> None:
    """Print a description of the target. Raises CheckpointError or InputError if it cannot be read."""
    path, options = locate(target, how.get("variant")), OpenOptions(**how)
    if path.suffix.lower() in IMAGES:
        refuse_options(path, "an image", options)
        lines = _image(path)
    elif RunFolder(path).config.is_file():
        refuse_options(path, "a run", options)
        lines = _training_run(RunFolder(path))
    else:
        lines = describe(path, options)
    for line in list(lines):
        print(line)


def _image(path: Path) -> Iterator[str]:
    found = read_any(path)
    yield f"{path}: an image with its recipe, by {found.program}"
    for key, value in found.settings.items():
        if value not in (None, (), False, {}):
            yield f"{key}: {value}"
    if found.dropped:
        yield f"not supported here: {', '.join(found.dropped)}"


def _training_run(run: RunFolder) -> Iterator[str]:
    from latentdiff.config.base import load_yaml
    from latentdiff.config.train import train_config

    config = load_yaml(train_config, run.config)
    rows = _rows(run.metrics)
    step = max((row["step"] for row in rows), default=0)
    method = f" ({config.method})" if config.task == "finetune" else ""
    yield f"{run.path}: a run of task {config.task}{method}, at step {step} of {config.optim.max_steps}"
    losses = [row["loss"] for row in rows if isinstance(row.get("loss"), int | float)]
    if losses:
        yield f"loss: {losses[0]:.4g} at the start, {losses[-1]:.4g} at the end"
    saved = run.checkpoints()
    yield f"checkpoints: {len(saved)}, the newest {saved[0].name}" if saved else "checkpoints: none"
    yield f"model: {run.model}" if run.model.is_dir() else "model: not written yet"


def _rows(path: Path) -> list[dict[str, Any]]:
    """The valid rows of a log, whose last line may be incomplete."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            found.append(row)
    return found
