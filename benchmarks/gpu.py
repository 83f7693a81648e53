"""All tables of one GPU with one command, within 20 minutes: `python -m benchmarks.gpu`.

Pictures against diffusers with and without torch.compile, training steps, and calls of the U-Net at several batch
sizes, with peak memory. Parts run in order of importance; a part that fails, or for which no time remains, has a line
that states this. The report is rewritten after each part, so that an interrupted run leaves a complete report of the
earlier parts.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks import compare, networks, pipeline, report, training, training_shapes
from benchmarks.contestants import base, compiled
from benchmarks.machine import device_option

LEAST_S = 20  # a part that starts with less remaining time cannot finish
PICTURES = ["diffusers bfloat16", "diffusers bfloat16 compile", "latentdiff bfloat16", "latentdiff bfloat16 compile"]
DTYPE = "bfloat16"
CALLS = [base(DTYPE), compiled(DTYPE), "latentdiff bfloat16 prepared", "latentdiff bfloat16 plain"]
SHAPES = {"sd15": training_shapes.Shape, "emoji": training_shapes.emoji}


@dataclass(frozen=True)
class Sizes:
    """What is measured. size: side of the pictures; None for the model's own. compiled: also with torch.compile."""

    device: str
    shapes: tuple[str, ...] = ("sd15", "sdxl")
    batches: tuple[int, ...] = (1, 4, 16)
    steps: int = 50
    size: int | None = 512
    rounds: int = 3
    compiled: bool = True

    def chosen(self, contestants: Sequence[str]) -> list[str]:
        return [name for name in contestants if self.compiled or "compile" not in name]


@dataclass(frozen=True)
class Part:
    """A table. measure: takes the remaining seconds and returns the table's body."""

    name: str
    measure: Callable[[float], str]


def parts(sizes: Sizes) -> list[Part]:
    """Pictures and training steps of the shapes with a pipeline, then calls of each U-Net; small batches first."""
    with_pipeline = [shape for shape in sizes.shapes if shape in SHAPES]
    found = [Part(f"pictures, {shape}", partial(pictures, sizes, shape)) for shape in with_pipeline]
    found += [Part(f"training step, {shape}", partial(steps, sizes, shape)) for shape in with_pipeline]
    for batch in sizes.batches:
        found += [Part(f"U-Net, {shape}, batch {batch}", partial(calls, sizes, shape, batch)) for shape in sizes.shapes]
    return found


def pictures(sizes: Sizes, shape: str, left: float) -> str:
    with ExitStack() as kept:
        folder = pipeline.chosen_folder(None, shape if shape == "sd15" else None, kept)
        size = sizes.size if shape == "sd15" else None
        picture = pipeline.Picture(
            folder=folder, device=sizes.device, steps=sizes.steps, batch=sizes.batches[0], size=size
        )
        contest = pipeline.measure(picture, sizes.chosen(PICTURES), sizes.rounds, limit=left / 2)
        return pipeline.tabulate(contest, PICTURES[0])


def steps(sizes: Sizes, shape: str, _: float) -> str:
    return training.tabulate(training.measure(SHAPES[shape](), sizes.rounds, steps=4, together=False))


def calls(sizes: Sizes, shape: str, batch: int, left: float) -> str:
    network = networks.unet(shape, batch=batch, device=sizes.device)
    contest, errors = compare.compare(network, sizes.chosen(CALLS), DTYPE, sizes.rounds, limit=left / 2)
    return compare.tabulate(contest, errors, networks.flops(network), DTYPE, sizes.device)


def run(listed: Sequence[Part], seconds: float, write: Callable[[str], object]) -> None:
    """Measure the parts while time remains; after each part, `write` receives all results so far."""
    end, bodies = time.monotonic() + seconds, list[str]()
    for part in listed:
        left = end - time.monotonic()
        print(f"{part.name}: {left / 60:.0f} minutes left", file=sys.stderr)
        try:
            body = part.measure(left) if left > LEAST_S else f"Not measured: the {seconds / 60:.0f} minutes had passed."
        except Exception as error:  # the other parts are valid
            body = f"Failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        bodies.append(f"## {part.name}\n\n{body}")
        write("\n\n".join(bodies))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", type=device_option, help="default: CUDA; with cpu the command can be tried without a GPU"
    )
    parser.add_argument("--shapes", nargs="+", default=Sizes.shapes, choices=networks.SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=Sizes.batches)
    parser.add_argument("--steps", type=int, default=Sizes.steps)
    parser.add_argument("--size", type=int, default=Sizes.size)
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    given = parser.parse_args()
    if given.device is None and not torch.cuda.is_available():
        print("error: torch finds no CUDA device here; run this on a machine with one, or try it with --device cpu",
              file=sys.stderr)  # fmt: skip
        return 2
    device = torch.device(given.device or "cuda")
    sizes = Sizes(
        str(device), tuple(given.shapes), tuple(given.batches), given.steps, given.size, given.rounds,
        not given.no_compile,
    )  # fmt: skip
    about = f"{', '.join(sizes.shapes)} with random weights, {sizes.steps} steps a picture, {sizes.rounds} rounds."

    def write(body: str) -> None:
        with redirect_stdout(sys.stderr):
            report.write("gpu", about, body, device)

    run(parts(sizes), given.minutes * 60, write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
