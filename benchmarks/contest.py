"""Run contestants in separate processes, alternating between them, as many at a time as fit into memory."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.turns import Turn, Worker, alternate, passes

# Equal for all contestants. Idle threads spin for a millisecond (libgomp's default) and then sleep. Without spinning, a
# small network takes a quarter longer; if threads spin longer, one contestant slows down the next.
ENVIRONMENT = {"GOMP_SPINCOUNT": "300000"}


@dataclass(frozen=True)
class Entry:
    """The arguments of `benchmarks.worker`, and the approximate number of bytes that it occupies."""

    module: str
    settings: str
    bytes_needed: float = 0.0


@dataclass
class Contest:
    """Turns by name, notes on contestants without turns, and the groups that were in memory together."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    together: list[list[str]] = field(default_factory=list)

    def about(self, rounds: int) -> str:
        lots = "; then ".join(", ".join(group) for group in self.together)
        return (
            "Each contestant has a separate process. A turn lasts half a second, or one call if that is longer; "
            f"{rounds} rounds, after one round of warm-up. In memory at the same time: {lots}."
        )


def run_contest(
    entries: Mapping[str, Entry], rounds: int, free: float, always: Mapping[str, Entry] | None = None,
    outputs: Path | None = None, limit: float | None = None,
) -> Contest:  # fmt: skip
    """Time all contestants in turns. free: bytes that they may occupy together. always: these run with every group.

    The output of each is saved to `outputs` as NAME.pt. A contestant that fails, or that takes over `limit` seconds for
    a turn (for the first, including its start), has a note instead of turns.
    """
    contest = Contest(together=passes({name: entry.bytes_needed for name, entry in entries.items()}, free))
    for group in contest.together:
        with ExitStack() as kept:
            calls: dict[str, Callable[[], Turn | None]] = {}
            for name, entry in {**{name: entries[name] for name in group}, **(always or {})}.items():
                arguments = ("benchmarks.worker", entry.module, name, entry.settings)
                worker = kept.enter_context(Worker(name, *arguments, environment=ENVIRONMENT))
                start = time.perf_counter()
                try:
                    worker.ask(str(outputs / f"{name}.pt") if outputs else "", limit)
                except RuntimeError as error:
                    contest.notes[name] = str(error)
                else:
                    calls[name] = _turn(worker, limit, contest.notes)
                print(f"{name}: {time.perf_counter() - start:.1f} s to its first result", file=sys.stderr)
            for name, turns in alternate(calls, rounds).items():
                contest.turns.setdefault(name, []).extend(turn for turn in turns if turn is not None)
    for name in contest.notes:
        contest.turns.pop(name, None)
    return contest


def _turn(worker: Worker, limit: float | None, notes: dict[str, str]) -> Callable[[], Turn | None]:
    """A function that takes one turn; after a failure it returns None, and `notes` has the reason."""

    def take() -> Turn | None:
        if worker.name in notes:
            return None
        try:
            return Turn(**worker.ask("", limit))
        except RuntimeError as error:
            notes[worker.name] = str(error)
            return None

    return take
