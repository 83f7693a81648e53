"""Alternate between contestants, so that other work on the machine affects all of them equally."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Turn:
    """One turn of one contestant: seconds of each call, and the peak memory of its process in bytes."""

    seconds: list[float]
    peak_bytes: int
    user_s: float = 0.0


class Worker:
    """A process that responds to each line of text on stdin with one line of JSON and is otherwise idle. `with` ends
    it.
    """

    def __init__(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            process_group=0,  # so that its child processes end with it
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def ask(self, line: str, limit: float | None = None) -> dict[str, Any]:
        """Its answer. Raises RuntimeError if it exited, reported a failure, or was ended after `limit` seconds."""
        if limit is None:
            return self._ask(line)
        end = time.monotonic() + limit
        late = Timer(limit, _end_group, [self.process.pid])
        late.start()
        try:
            return self._ask(line)
        except RuntimeError:
            if time.monotonic() >= end:
                raise RuntimeError(f"no response in {limit:.0f} s; excluded") from None
            raise
        finally:
            late.cancel()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it exited earlier, which the empty response below reports
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}; see its message above")
        found: dict[str, Any] = json.loads(answer)
        if "failed" in found:
            raise RuntimeError(found["failed"])
        return found


def alternate(calls: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """The results of each call; every round runs all calls one after the other."""
    turns: dict[str, list[T]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            turns[name].append(call())
    return turns


def passes(needs: Mapping[str, float], free: float) -> list[list[str]]:
    """Groups of contestants that fit into `free` bytes together, in order; a contestant that never fits is a separate
    group.
    """
    groups: list[list[str]] = []
    left = 0.0
    for name, needed in needs.items():
        if not groups or needed > left:
            groups.append([])
            left = free
        groups[-1].append(name)
        left -= needed
    return groups


def median(turns: list[Turn]) -> float:
    return statistics.median(second for turn in turns for second in turn.seconds)


def fastest(turns: list[Turn]) -> float:
    return min(second for turn in turns for second in turn.seconds)


def _end_group(process: int) -> None:
    if sys.platform == "win32":
        os.kill(process, signal.SIGTERM)
    else:
        os.killpg(process, signal.SIGKILL)
