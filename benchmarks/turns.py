"""Contestants that take turns, so that a busy machine disturbs all alike."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The same for all. Idle threads spin for a millisecond (libgomp's default) and then sleep: without the millisecond a
# small network takes a quarter longer, with more of it one contestant holds up the next. glibc keeps what was freed
# instead of giving it back to the kernel after each layer.
ENVIRONMENT = {"GOMP_SPINCOUNT": "300000", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


@dataclass(frozen=True)
class Turn:
    """What one contestant did in one turn: seconds of each call, and the most bytes that its process ever held."""

    seconds: list[float]
    peak_bytes: int
    user_s: float = 0.0


class Worker:
    """A process that works only while it is asked to: a line of text goes in, a line of JSON comes out."""

    def __init__(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer. Raises RuntimeError when the process ended, or answered that it failed."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended before it was asked; the empty answer says so
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}; its message is above")
        found: dict[str, Any] = json.loads(answer)
        if "failed" in found:
            raise RuntimeError(found["failed"])
        return found


def alternate(calls: Mapping[str, Callable[[], Turn]], rounds: int) -> dict[str, list[Turn]]:
    """Each call's turns, taken one after the other in every round."""
    turns: dict[str, list[Turn]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            turns[name].append(call())
    return turns


def passes(needs: Mapping[str, float], free: float) -> list[list[str]]:
    """Contestants that fit into `free` bytes together, in their order; one that never fits has a pass of its own."""
    groups: list[list[str]] = []
    left = 0.0
    for name, bytes_needed in needs.items():
        if not groups or bytes_needed > left:
            groups.append([])
            left = free
        groups[-1].append(name)
        left -= bytes_needed
    return groups


def median(turns: list[Turn]) -> float:
    return statistics.median(second for turn in turns for second in turn.seconds)


def fastest(turns: list[Turn]) -> float:
    return min(second for turn in turns for second in turn.seconds)
