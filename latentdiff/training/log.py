"""The log of a run, `metrics.jsonl`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentdiff.files import write_atomically


@dataclass
class Log:
    """`metrics.jsonl`, one line per event; a resumed run first drops the lines after its checkpoint."""

    path: Path

    def start(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if step and self.path.exists() else []
        kept = [line for line in lines if _step(line) <= step]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf  # incomplete, because the run ended while it was written
