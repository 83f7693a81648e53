"""The process of one contestant: `python -m benchmarks.worker MODULE NAME SETTINGS`.

MODULE has a function `build(name, settings)` that returns the call to time. Each line on stdin starts a turn; if the
line contains a path, the last output of the turn is saved there.
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

TURN_S = 0.5  # minimum length of a turn; short calls are repeated


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def take(call: Callable[[], Any], path: str) -> dict[str, Any]:
    """Seconds of each call of a turn, and peak memory so far in bytes, of the GPU if there is one."""
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
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not be read as a response
        try:
            call = importlib.import_module(module).build(name, settings)
            keep_freed_memory()
            for line in sys.stdin:
                print(json.dumps(take(call, line.strip())), file=answers, flush=True)
        except Exception as error:  # the row of a contestant that cannot run here states the reason
            first = (str(error).strip() or "no message").splitlines()[0]
            print(json.dumps({"failed": f"{type(error).__name__}: {first}"}), file=answers, flush=True)


if __name__ == "__main__":
    main()
