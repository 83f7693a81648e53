"""The progress of a fine-tune, read from the files of its run."""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from latentdiff.files import finished_files
from latentdiff.serving.errors import NotFoundError
from latentdiff.serving.finetunes.folder import FineTune
from latentdiff.training.samples import read_samples

POINTS = 300  # of a curve
RECENT = 10  # lines of the log from which the speed is computed
SAMPLE_SIZE = 512


@dataclass(frozen=True)
class Progress:
    """What the page shows of a run. step, total: optimiser steps. eta: seconds. losses, held_out: (step, value)."""

    step: int
    total: int
    eta: float | None
    losses: list[tuple[int, float]]
    held_out: list[tuple[int, float]]
    samples: list[int]
    captions: list[str]


def planned_steps(one: FineTune) -> int:
    """The number of steps in the run's config; 0 if it does not exist yet."""
    try:
        config = yaml.safe_load((one.output / "config.yaml").read_text(encoding="utf-8"))
        return int(config["optim"]["max_steps"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return 0


def read_progress(one: FineTune, running: bool) -> Progress:
    """The progress in the log and the samples of a run; empty if it has not started."""
    rows, began = _rows(one.output / "metrics.jsonl"), float(one.read("process.json").get("created", 0))
    losses, held_out = _curve(rows, "loss"), _curve(rows, "held_out_loss")
    step, total = max((int(row["step"]) for row in rows), default=0), planned_steps(one)
    paths = finished_files(one.output / "samples", "*.png")
    return Progress(
        step=step,
        total=total,
        eta=_eta([row for row in rows if "loss" in row and row["time"] > began], total) if running else None,
        losses=losses,
        held_out=held_out,
        samples=[int(path.stem) for path in paths],
        captions=read_samples(paths[-1]).captions if paths else [],
    )


def sample_image(one: FineTune, step: int, index: int) -> bytes:
    """One sample as JPEG. Raises NotFoundError."""
    try:
        image = read_samples(one.output / "samples" / f"{step:07d}.png").images()[index]
    except (OSError, IndexError) as error:
        raise NotFoundError(f"sample {index} of step {step} does not exist") from error
    image.thumbnail((SAMPLE_SIZE, SAMPLE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of the log; one that is being written is skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def _curve(rows: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    points = [(int(row["step"]), float(row[name])) for row in rows if math.isfinite(row.get(name, math.nan))]
    stride = -(-len(points) // POINTS) or 1
    return points[::-1][::stride][::-1]


def _eta(rows: list[dict[str, Any]], total: int) -> float | None:
    recent = rows[-RECENT:]
    if len(recent) < 2 or (steps := recent[-1]["step"] - recent[0]["step"]) <= 0:
        return None
    seconds = (recent[-1]["time"] - recent[0]["time"]) / steps
    return float(round(seconds * (total - recent[-1]["step"]), 1))
