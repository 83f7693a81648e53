"""Contestants that each have a process: started, warmed up and asked in turns, as many at a time as memory holds."""

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
    outputs: Path | None = None,
) -> Contest:  # fmt: skip
    """Ask all in turns; `free`: bytes for them to share. `always`: these run with every lot that shares the memory.

    What each computes goes to `outputs` as NAME.pt. One that fails has a note instead of turns.
    """
    contest = Contest(together=passes({name: entry.bytes_needed for name, entry in entries.items()}, free))
    for group in contest.together:
        with ExitStack() as kept:
            calls: dict[str, Callable[[], Turn]] = {}
            for name, entry in {**{name: entries[name] for name in group}, **(always or {})}.items():
                arguments = ("benchmarks.worker", entry.module, name, entry.settings)
                worker = kept.enter_context(Worker(name, *arguments, environment=ENVIRONMENT))
                try:
                    worker.ask(str(outputs / f"{name}.pt") if outputs else "")
                except RuntimeError as error:
                    contest.notes[name] = str(error)
                else:
                    calls[name] = _turn(worker)
            for name, turns in alternate(calls, rounds).items():
                contest.turns.setdefault(name, []).extend(turns)
    return contest


def _turn(worker: Worker) -> Callable[[], Turn]:
    return lambda: Turn(**worker.ask(""))
