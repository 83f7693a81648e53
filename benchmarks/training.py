"""Time training steps, ours and those of diffusers' script, alternately: `python -m benchmarks.training`."""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, hardware, versions
from benchmarks.report import command, table
from benchmarks.training_shapes import Shape, emoji, write_pictures
from benchmarks.training_sides import SIDES
from benchmarks.turns import Worker, alternate
from latentdiff.runtime.device import pick_device
from latentdiff.training.processes import usual_precision


@contextmanager
def working(side: str, folder: Path, warm_up: int) -> Iterator[Worker]:
    """The process of one side, after `warm_up` steps that are not counted."""
    with Worker(side, "benchmarks.training_sides", side, str(folder)) as worker:
        worker.ask(str(warm_up))
        yield worker


@dataclass(frozen=True)
class Figures:
    """The results of one side over all of its turns."""

    median_s: float
    min_s: float
    pictures_per_s: float
    peak_gib: float
    loading_share: float
    seconds: list[float]

    @classmethod
    def of(cls, turns: list[dict[str, Any]], batch: int) -> "Figures":
        seconds = [second for turn in turns for second in turn["seconds"]]
        median = statistics.median(seconds)
        peak = max(turn["peak_bytes"] for turn in turns) / 2**30
        waited = sum(turn["waited"] for turn in turns)
        return cls(median, min(seconds), batch / median, peak, waited / sum(seconds), seconds)


def measure(shape: Shape, rounds: int, steps: int, together: bool = True) -> dict[str, Figures]:
    """Alternate between all sides, `steps` steps per turn. together: keep all processes; else one at a time."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as kept:
        folder = Path(name)
        write_pictures(shape, folder / "pictures")
        (folder / "shape.json").write_text(shape.model_dump_json(), encoding="utf-8")
        workers = {side: kept.enter_context(working(side, folder, warm_up=2)) for side in SIDES} if together else {}

        def turn(side: str) -> dict[str, Any]:
            with ExitStack() as alone:
                worker = workers.get(side) or alone.enter_context(working(side, folder, warm_up=1))
                return worker.ask(str(steps))

        turns = alternate({side: partial(turn, side) for side in SIDES}, rounds)
    return {side: Figures.of(found, shape.batch) for side, found in turns.items()}


def tabulate(figures: dict[str, Figures]) -> str:
    base = figures["diffusers"]
    header = [
        "",
        "median s per step",
        "pictures a second",
        "of diffusers",
        "peak memory",
        "of diffusers",
        "loading data",
    ]
    rows = []
    for name, found in figures.items():
        speed = [f"{found.median_s:.3f}", f"{found.pictures_per_s:.1f}", f"{base.median_s / found.median_s:.2f}x"]
        memory = [f"{found.peak_gib:.2f} GiB", f"{found.peak_gib / base.peak_gib:.2f}x"]
        rows.append([name, *speed, *memory, f"{found.loading_share:.1%}"])
    return table(header, rows)


def write(figures: dict[str, Figures], shape: Shape, command: str) -> Path:
    device = pick_device("auto")
    report = {
        "date": str(date.today()),
        "command": command,
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "mixed_precision": usual_precision(),
        "versions": versions(),
        "shape": shape.model_dump(mode="json"),
        "sides": {name: asdict(found) for name, found in figures.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"training_{shape.name}_{hardware(device).replace(' ', '-')}_{date.today()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sd15",
        action="store_true",
        help="a U-Net with 860 M parameters, one side in memory at a time; by default the bundled model's",
    )
    parser.add_argument("--latents", type=int, default=64, help="height and width of the latents for --sd15")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="steps of each side per round")
    given = parser.parse_args()
    shape = Shape(latents=given.latents) if given.sd15 else emoji()
    figures = measure(shape, given.rounds, given.steps, together=not given.sd15)
    path = write(figures, shape, command())
    settings = f"batch {shape.batch}, mixed precision {usual_precision()}, {torch.get_num_threads()} threads"
    print(f"{tabulate(figures)}\n\n{shape.name}, {settings}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
