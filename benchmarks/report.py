"""How results are written: a Markdown table, and a file that says on what, with what and by which command."""

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from benchmarks.machine import RESULTS, hardware, versions


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown. Raises ValueError when a row is not as long as the header."""
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"every row needs {len(header)} cells, one for each of {list(header)}")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(what: str, about: str, body: str, device: torch.device) -> Path:
    """Print the report and put it in `benchmarks/results/`. `about`: what was measured and how, in a sentence."""
    command = " ".join(["python -m", f"benchmarks.{what}", *sys.argv[1:]])
    text = (
        f"# benchmarks.{what}, {date.today()}\n\n"
        f"{about}\n\n{hardware(device)}, {torch.get_num_threads()} threads; {versions()}\n\n{body}\n\n`{command}`\n"
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{what}_{hardware(device).replace(' ', '-')}_{date.today()}.md"
    path.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {path}")
    return path
