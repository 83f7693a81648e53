"""Seconds and memory of a picture at many batches, sizes, steps and threads: `python -m benchmarks.scale`.

Each axis changes one setting and keeps the others: one picture of the model's size, `--base-steps` steps, all threads.
Writes a table of ours and diffusers', and beside it plots of the seconds and of the memory along each axis.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product

import torch

from benchmarks.contest import Contest
from benchmarks.contestants import PRECISIONS
from benchmarks.machine import device_option
from benchmarks.pipeline import Picture, chosen_folder, measure
from benchmarks.report import table, write
from benchmarks.turns import median
from latentdiff.files import write_atomically
from latentdiff.runtime.device import pick_dtype
from latentdiff.training.chart import Curve, as_file, chart

VALUES = {"batch": (1, 2, 4, 8, 16), "size": (256, 512, 768, 1024, 1536), "steps": (5, 10, 20, 50)}
UNITS = {"batch": "pictures", "size": "pixels a side", "steps": "steps", "threads": "threads"}
COLORS = {"latentdiff": "#2563eb", "diffusers": "#dc2626"}
QUANTITIES = {"seconds": "s a picture", "gib": "GiB"}


@dataclass(frozen=True)
class Point:
    """One side at one value of an axis. seconds: of one picture; gib: peak memory. note: why there are neither."""

    axis: str
    value: int
    side: str
    seconds: float = 0.0
    gib: float = 0.0
    note: str = ""


def threads() -> tuple[int, ...]:
    """1, 2, 4 and so on up to all threads of this process."""
    most = torch.get_num_threads()
    return (*(2**k for k in range((most - 1).bit_length())), most)


def measure_axis(base: Picture, axis: str, values: Sequence[int], dtype: str, rounds: int, limit: float) -> list[Point]:
    """The points of both sides at each value."""
    names = {side: f"{side} {dtype}" for side in COLORS}
    points = []
    for value in values:
        picture = base.model_copy(update={axis: value})
        contest = measure(picture, list(names.values()), rounds, limit)
        points += [_point(contest, axis, value, side, name, picture.batch) for side, name in names.items()]
    return points


def _point(contest: Contest, axis: str, value: int, side: str, name: str, batch: int) -> Point:
    if name in contest.notes:
        return Point(axis, value, side, note=contest.notes[name])
    turns = contest.turns[name]
    return Point(axis, value, side, median(turns) / batch, max(turn.peak_bytes for turn in turns) / 2**30)


def tabulate(points: Sequence[Point]) -> str:
    """A row for each value: the seconds of both sides, their ratio, and the memory of both."""
    header = ["", "latentdiff, s a picture", "diffusers, s a picture", "ratio", "latentdiff, GiB", "diffusers, GiB"]
    found: dict[tuple[str, int], dict[str, Point]] = {}
    for point in points:
        found.setdefault((point.axis, point.value), {})[point.side] = point
    rows = []
    for (axis, value), sides in found.items():
        ours, theirs = (sides[side] for side in COLORS)
        seconds = [point.note or f"{point.seconds:.4g}" for point in (ours, theirs)]
        ratio = "" if ours.note or theirs.note else f"{ours.seconds / theirs.seconds:.2f}"
        memory = ["" if point.note else f"{point.gib:.2f}" for point in (ours, theirs)]
        rows.append([f"{value} {UNITS[axis]}", *seconds, ratio, *memory])
    return table(header, rows)


def plot(points: Sequence[Point], axis: str, quantity: str) -> str:
    """An SVG file of `seconds` or `gib` along one axis, without the values at which a side has no result.

    Empty if the axis has fewer than two values with a result.
    """
    curves = []
    for side, color in COLORS.items():
        own = [point for point in points if (point.axis, point.side) == (axis, side) and not point.note]
        if own:
            curves.append(Curve(side, [(float(point.value), getattr(point, quantity)) for point in own], color))
    if len({x for curve in curves for x, _ in curve.points}) < 2:
        return ""
    return as_file(chart(f"{QUANTITIES[quantity]}, over {UNITS[axis]}", curves, None, log_across=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="model folder; the bundled one by default")
    parser.add_argument("--shape", choices=["sd15"], help="use random weights of this shape instead of a model")
    parser.add_argument("--device", default="auto", type=device_option)
    parser.add_argument("--dtype", default="auto", choices=["auto", *PRECISIONS])
    parser.add_argument("--axes", nargs="+", default=list(UNITS), choices=list(UNITS))
    for axis, values in {**VALUES, "threads": threads()}.items():
        parser.add_argument(f"--{axis}", nargs="+", type=int, default=values, help="the values of this axis")
    parser.add_argument("--base-steps", type=int, default=10, help="steps of the other axes")
    parser.add_argument("--base-size", type=int, help="size of the other axes; by default that of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300, help="seconds to wait for a call of one side")
    given = parser.parse_args()
    device = torch.device(given.device)
    dtype = str(pick_dtype(given.dtype, device)).removeprefix("torch.")
    with ExitStack() as kept:
        folder = chosen_folder(given.model, given.shape, kept)
        base = Picture(folder=folder, device=given.device, steps=given.base_steps, size=given.base_size)
        points = [
            point
            for axis in given.axes
            for point in measure_axis(base, axis, getattr(given, axis), dtype, given.rounds, given.limit)
        ]
    size = f"{given.base_size}x{given.base_size} pixels" if given.base_size else "the model's size"
    about = (
        f"{folder.name}, {dtype}, guidance 5, DDIM. Unless stated otherwise one picture of {size}, {given.base_steps} "
        f"steps, all threads. Both sides take turns of a call at each point; medians of {given.rounds}. Memory: the "
        "peak of the process, including loading."
    )
    path = write(f"scale_{folder.name}_{dtype}", about, tabulate(points), device)
    for axis, quantity in product(given.axes, QUANTITIES):
        if svg := plot(points, axis, quantity):
            write_atomically(path.with_name(f"{path.stem}_{axis}_{quantity}.svg"), svg)


if __name__ == "__main__":
    main()
