"""Time from the shell to a PNG file in new processes, ours and diffusers': `python -m benchmarks.coldstart`."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.machine import device_option
from benchmarks.report import seconds_cells, table, write
from benchmarks.turns import Turn, Worker, alternate, median
from latentdiff.checkpoints.locate_model import locate

PROMPT = "a red apple"
BASE = "diffusers, shortest script"
SCRIPT = """
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({folder!r}, torch_dtype=torch.float32).to({device!r})
pipe({prompt!r}, num_inference_steps={steps}).images[0].save({output!r})
"""


def commands(folder: Path, device: str, steps: int, output: Path) -> dict[str, list[str]]:
    """The commands to run, each with this Python."""
    ours = [sys.executable, "-m", "latentdiff"]
    script = SCRIPT.format(folder=str(folder), device=device, prompt=PROMPT, steps=steps, output=str(output))
    options = ["--model", str(folder), "--device", device, "--steps", str(steps), "--output", str(output)]
    return {
        BASE: [sys.executable, "-c", script],
        "latentdiff generate": [*ours, "generate", PROMPT, "--sampler", "ddim", *options],
        "latentdiff --help": [*ours, "--help"],
    }


def start(command: list[str]) -> Turn:
    """Run a command until it exits. Raises RuntimeError if it fails."""
    with Worker(command[0], "benchmarks.clock", *command) as worker:
        return Turn(**worker.ask(""))


def measure(folder: Path, device: str, steps: int, rounds: int) -> dict[str, list[Turn]]:
    """Turns of new processes; the first round, in which files may not be cached in memory, is not counted."""
    with TemporaryDirectory() as temporary:
        listed = commands(folder, device, steps, Path(temporary) / "picture.png")
        calls: dict[str, Callable[[], Turn]] = {name: partial(start, command) for name, command in listed.items()}
        alternate(calls, 1)
        return alternate(calls, rounds)


def tabulate(turns: dict[str, list[Turn]]) -> str:
    header = ["", "median s", "min s", f"of {BASE}", "user CPU s", "peak memory GiB"]
    rows = []
    for name, own in turns.items():
        user = median([Turn([turn.user_s], 0) for turn in own])
        peak = max(turn.peak_bytes for turn in own) / 2**30
        rows.append([name, *seconds_cells(turns, name, BASE), f"{user:.4g}", f"{peak:.2f}"])
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="model folder; the bundled one by default")
    parser.add_argument("--device", default="auto", type=device_option)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    folder = locate(given.model)
    body = tabulate(measure(folder, given.device, given.steps, given.rounds))
    about = (
        f"One picture of {folder.name} written to a file, {given.steps} steps, {given.device}, by a new process; "
        f"{given.rounds} rounds after one to warm up."
    )
    write(f"coldstart_{folder.name}", about, body, torch.device(given.device))


if __name__ == "__main__":
    main()
