"""One contestant in a process of its own: `python -m benchmarks.worker MODULE NAME SETTINGS`.

MODULE has `build(name, settings)`, which answers with what is to be timed. Each line on stdin asks for a turn; the
path of a file on it has the turn's last result saved there.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from latentdiff.runtime.memory import keep_freed_memory, peak_memory

TURN_S = 0.5  # a turn goes on for this long: calls that take milliseconds are many


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def take(call: Callable[[], Any], path: str) -> dict[str, Any]:
    """Seconds of each call of a turn, and the most bytes that were held so far: of the GPU's memory where one is."""
    seconds: list[float] = []
    while sum(seconds) < TURN_S:
        second, result = timed(call)
        seconds.append(second)
    if path:
        torch.save(result, path)
    peak = peak_memory(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))
    return {"seconds": seconds, "peak_bytes": peak}


def main() -> None:
    module, name, settings = sys.argv[1:]
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers, torch.no_grad():
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
        try:
            call = importlib.import_module(module).build(name, settings)
            keep_freed_memory()
            for line in sys.stdin:
                print(json.dumps(take(call, line.strip())), file=answers, flush=True)
        except Exception as error:  # a peer that cannot run here has a row that says why
            first = (str(error).strip() or "no message").splitlines()[0]
            print(json.dumps({"failed": f"{type(error).__name__}: {first}"}), file=answers, flush=True)


if __name__ == "__main__":
    main()
