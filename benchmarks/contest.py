"""Contestants that each have a process: started, warmed up and asked in turns, as many at a time as memory holds."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.turns import Turn, Worker, alternate, passes

# The same for all. Idle threads spin for a millisecond (libgomp's default) and then sleep: without the millisecond a
# small network takes a quarter longer, with more of it one contestant holds up the next.
ENVIRONMENT = {"GOMP_SPINCOUNT": "300000"}


@dataclass(frozen=True)
class Entry:
    """What `benchmarks.worker` is started with, and about how many bytes it keeps."""

    module: str
    settings: str
    bytes_needed: float = 0.0


@dataclass
class Contest:
    """Turns by name, why the others have none, and who shared the memory with whom."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    together: list[list[str]] = field(default_factory=list)

    def about(self, rounds: int) -> str:
        lots = "; then ".join(", ".join(group) for group in self.together)
        return (
            f"Each in a process of its own, in turns of half a second or one call, {rounds} rounds after one to warm "
            f"up. In memory together: {lots}."
        )


def hold(
    entries: Mapping[str, Entry], rounds: int, free: float, always: Mapping[str, Entry] | None = None,
    outputs: Path | None = None, limit: float | None = None,
) -> Contest:  # fmt: skip
    """Ask all in turns; `free`: bytes for them to share. `always`: these run with every lot that shares the memory.

    What each computes goes to `outputs` as NAME.pt. One that fails, or that takes over `limit` seconds for an answer,
    the first with all that comes before it included, has a note instead of turns.
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
                print(f"{name}: {time.perf_counter() - start:.1f} s to its first answer", file=sys.stderr)
            for name, turns in alternate(calls, rounds).items():
                contest.turns.setdefault(name, []).extend(turn for turn in turns if turn is not None)
    for name in contest.notes:
        contest.turns.pop(name, None)
    return contest


def _turn(worker: Worker, limit: float | None, notes: dict[str, str]) -> Callable[[], Turn | None]:
    """A turn; None, and a note, from the time on when it fails."""

    def take() -> Turn | None:
        if worker.name in notes:
            return None
        try:
            return Turn(**worker.ask("", limit))
        except RuntimeError as error:
            notes[worker.name] = str(error)
            return None

    return take
