"""Write results: a Markdown table, in a file that names the hardware, the versions and the command."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

from benchmarks.machine import RESULTS, hardware, limits, versions
from benchmarks.turns import Turn, fastest, median


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Raises ValueError if the length of a row differs from that of the header."""
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"every row needs {len(header)} cells, one for each of {list(header)}")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds_cells(turns: Mapping[str, list[Turn]], name: str, base: str) -> list[str]:
    """Median and minimum of the seconds, and the ratio of the median to that of `base`, if `base` took a turn."""
    own = median(turns[name])
    ratio = f"{own / median(turns[base]):.2f}" if base in turns else ""
    return [f"{own:.4g}", f"{fastest(turns[name]):.4g}", ratio]


def write(what: str, about: str, body: str, device: torch.device) -> Path:
    """Print the report and write it to `benchmarks/results/`. about: what was measured, and how."""
    text = (
        f"# {what.replace('_', ' ')}, {date.today()}\n\n{about}\n"
        f"{hardware(device)}, {torch.get_num_threads()} threads; {versions()}\n\n{body}\n\n`{command()}`\n"
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{what}_{hardware(device).replace(' ', '-')}_{date.today()}.md"
    path.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {path}")
    return path


def command() -> str:
    """The command that is running, with the variables that limit the instructions in use."""
    words = ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(_portable, sys.argv[1:])]
    return " ".join([*limits(), shlex.join(words)])


def _portable(argument: str) -> str:
    """An absolute path by its name: results are published, the folders of a machine are not."""
    path = Path(argument)
    return path.name if path.is_absolute() else argument
