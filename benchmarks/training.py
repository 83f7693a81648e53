"""Training steps, ours and as diffusers' script takes them, alternately in one run: `python -m benchmarks.training`."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, hardware, versions
from benchmarks.training_shapes import Shape, emoji, write_pictures
from benchmarks.training_sides import SIDES
from latentdiff.runtime import pick_device


class Worker:
    """One side in a process of its own, which works only while it is asked to. `with` ends it."""

    def __init__(self, side: str, folder: Path, warm_up: int) -> None:
        self.side, self.warm_up = side, warm_up
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training_sides", side, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )

    def __enter__(self) -> "Worker":
        self.take(self.warm_up)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def take(self, steps: int) -> dict[str, Any]:
        """What `training_sides.take` found. Raises RuntimeError when the process ended."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.side} ended with status {self.process.wait()}; its message is above")
        found: dict[str, Any] = json.loads(answer)
        return found


@dataclass(frozen=True)
class Figures:
    """What one side did in all of its turns."""

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
    """All sides in turn, `steps` steps a turn. `together`: their processes stay; else one at a time is in memory."""
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name, ExitStack() as kept:
        folder = Path(name)
        write_pictures(shape, folder / "pictures")
        (folder / "shape.json").write_text(shape.model_dump_json(), encoding="utf-8")
        workers = {side: kept.enter_context(Worker(side, folder, warm_up=2)) for side in SIDES} if together else {}
        for _ in range(rounds):
            for side, found in turns.items():
                with ExitStack() as alone:
                    worker = workers.get(side) or alone.enter_context(Worker(side, folder, warm_up=1))
                    found.append(worker.take(steps))
    return {side: Figures.of(found, shape.batch) for side, found in turns.items()}


def table(figures: dict[str, Figures]) -> str:
    base = figures["diffusers"]
    lines = [
        "| | median s a step | pictures a second | of diffusers | peak memory | of diffusers | loading data |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in figures.items():
        faster, larger = base.median_s / found.median_s, found.peak_gib / base.peak_gib
        lines.append(
            f"| {name} | {found.median_s:.3f} | {found.pictures_per_s:.1f} | {faster:.2f}x "
            f"| {found.peak_gib:.2f} GiB | {larger:.2f}x | {found.loading_share:.1%} |"
        )
    return "\n".join(lines)


def write(figures: dict[str, Figures], shape: Shape, command: str) -> Path:
    device = pick_device("auto")
    report = {
        "date": str(date.today()),
        "command": command,
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
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
    parser.add_argument("--sd15", action="store_true", help="an 860 M U-Net, one side in memory at a time; else emoji")
    parser.add_argument("--latents", type=int, default=64, help="of --sd15: height and width")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    given = parser.parse_args()
    shape = Shape(latents=given.latents) if given.sd15 else emoji()
    figures = measure(shape, given.rounds, given.steps, together=not given.sd15)
    path = write(figures, shape, " ".join(["python -m benchmarks.training", *sys.argv[1:]]))
    print(f"{table(figures)}\n\n{shape.name}, batch {shape.batch}, bf16 autocast, {torch.get_num_threads()} threads")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
