"""One contestant in a process of its own: `python -m benchmarks.worker MODULE NAME SETTINGS`.

MODULE has `build(name, settings)`, which answers with what is to be timed. Each line on stdin asks for a turn; the
path of a file on it asks for one call whose result is saved there.
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch

TURN_S = 0.5  # a turn goes on for this long: calls that take milliseconds are many


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def take(call: Callable[[], Any], path: str) -> dict[str, Any]:
    """Seconds of each call of a turn, and the most bytes that were held so far: of the GPU's memory where one is."""
    seconds: list[float] = []
    while not seconds or (sum(seconds) < TURN_S and not path):
        second, result = timed(call)
        seconds.append(second)
    if path:
        torch.save(result, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak}


def main() -> None:
    module, name, settings = sys.argv[1:]
    answers = sys.stdout
    with redirect_stdout(sys.stderr), torch.no_grad():
        try:
            call = importlib.import_module(module).build(name, settings)
            for line in sys.stdin:
                print(json.dumps(take(call, line.strip())), file=answers, flush=True)
        except Exception as error:  # a peer that cannot run here has a row that says why
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(json.dumps({"failed": f"{type(error).__name__}: {first}"}), file=answers, flush=True)


if __name__ == "__main__":
    main()
