"""Plot the metrics of training runs: `python -m examples.emoji.curves runs/emoji-* -o curves.png`."""

import argparse
import json
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from examples.command import exit_code

COLUMNS = 5  # of panels
SHOWN = {"loss": "training loss", "held_out_loss": "held-out loss", "psnr": "PSNR, dB", "recall_1": "retrieval R@1"}


def read(run: Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values; if a resumed run logged a step twice, the last value is used."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    values = {row["step"]: row[name] for row in rows if name in row}
    return sorted(values), [values[step] for step in sorted(values)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    return exit_code(plot, given.runs, given.output)


def plot(runs: list[Path], output: Path) -> None:
    """Plot losses on the left axis and held-out metrics on the right, with one panel per run."""
    columns, rows = min(len(runs), COLUMNS), math.ceil(len(runs) / COLUMNS)
    figure, panels = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False)
    for axes in panels.flat[len(runs) :]:
        axes.set_axis_off()
    for axes, run in zip(panels.flat, runs, strict=False):
        curves = {name: read(run, name) for name in SHOWN}
        held_out = axes.twinx() if curves["psnr"][0] or curves["recall_1"][0] else axes
        for k, (name, (steps, values)) in enumerate(curves.items()):
            if steps:
                (axes if "loss" in name else held_out).plot(steps, values, f"C{k}", label=SHOWN[name])
        axes.set(title=run.name, xlabel="step", yscale="log")
        lines = [line for ax in {axes, held_out} for line in ax.get_lines()]
        axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
