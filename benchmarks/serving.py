"""Throughput and latency of `latentdiff serve`, compared with pipelines behind a lock: `python -m benchmarks.serving`.

All sides use the same weights, dtype, sampler and steps. Rounds alternate between them, so that other work on the
machine affects all of them equally.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.report import table, write
from benchmarks.serving_sides import DIFFUSERS, LOCKED, OURS, Side, locked, our_pipeline, ours
from latentdiff.serving.group import MAX_ROWS

PROMPTS = ("a red apple", "a cat face", "a rocket", "two hearts")
QUEUE = 16  # of the overloaded server


@dataclass(frozen=True)
class Load:
    """The seconds of every answered request and of all together, and the number of times the queue was full."""

    seconds: list[float]
    wall: float
    refused: int = 0

    @property
    def throughput(self) -> float:
        return len(self.seconds) / self.wall


def body(index: int, steps: int) -> dict[str, Any]:
    """A guided request."""
    return {
        "prompt": PROMPTS[index % len(PROMPTS)],
        "seed": index,
        "num_inference_steps": steps,
        "guidance_scale": 3.0,
        "size": "128x128",
    }


def post(url: str, values: dict[str, Any]) -> None:
    data = json.dumps(values).encode()
    request = urllib.request.Request(f"{url}/v1/images/generations", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        assert json.load(answer)["data"][0]["b64_json"]


def load(url: str, clients: int, requests: int, steps: int) -> Load:
    """Clients that send the next request after each response, or after Retry-After if the queue is full."""
    refused = 0

    def ask(index: int) -> float:
        nonlocal refused
        while True:
            began = time.perf_counter()
            try:
                post(url, body(index, steps))
                return time.perf_counter() - began
            except urllib.error.HTTPError as error:
                if error.code != 429:
                    raise
                refused += 1
                time.sleep(float(error.headers["Retry-After"]))

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = list(pool.map(ask, range(requests)))
    return Load(seconds, time.perf_counter() - began, refused)


def throughput(dtype: str, clients: int, requests: int, steps: int, rounds: int) -> dict[str, list[Load]]:
    """Rounds in which all sides take turns."""
    found: dict[str, list[Load]] = {OURS: [], LOCKED: [], DIFFUSERS: []}
    with ExitStack() as kept:
        sides = {name: kept.enter_context(_side(name, dtype)) for name in found}
        for side in sides.values():
            load(side.url, 8, 8, steps)
        for _ in range(rounds):
            for name, side in sides.items():
                found[name].append(load(side.url, clients, requests, steps))
                print(f"{name}: {found[name][-1].throughput:.3f} images a second", file=sys.stderr)
    return found


def _side(name: str, dtype: str) -> Side:
    return ours(dtype) if name == OURS else locked(name, dtype)


def lone(dtype: str, steps: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of single requests to an idle server, and of direct calls of the pipeline, in turns."""
    make = our_pipeline(dtype)
    with ours(dtype) as side:
        calls: list[Callable[[], Any]] = [lambda: post(side.url, body(1, steps)), lambda: make(body(1, steps))]
        seconds: list[list[float]] = [[], []]
        for k in range(rounds + 1):
            for call, own in zip(calls, seconds, strict=True):
                began = time.perf_counter()
                call()
                own.extend([time.perf_counter() - began] if k else [])
    return seconds[0], seconds[1]


def overload(dtype: str, clients: int, requests: int, steps: int, rounds: int) -> list[tuple[Load, float]]:
    """Rounds of load on a server with a short queue, and the median seconds from an image's first step to its end."""
    found = []
    with ours(dtype, "--max-queue", str(QUEUE)) as side:
        load(side.url, MAX_ROWS, MAX_ROWS, steps)
        for _ in range(rounds):
            loaded = load(side.url, clients, requests, steps)
            found.append((loaded, statistics.median(side.service_seconds()[-requests:])))
            print(f"overload: p99 {percentile(loaded.seconds, 0.99):.1f} s", file=sys.stderr)
    return found


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def tabulate(found: dict[str, list[Load]]) -> str:
    rates = {name: statistics.median(each.throughput for each in loads) for name, loads in found.items()}
    rows = []
    for name, loads in found.items():
        seconds = [second for each in loads for second in each.seconds]
        cells = [f"{rates[name]:.3f}", f"{rates[OURS] / rates[name]:.2f}"]
        rows.append([name, *cells, f"{statistics.median(seconds):.1f}", f"{percentile(seconds, 0.99):.1f}"])
    return table(["", "images a second", "ours / this", "median s", "p99 s"], rows)


def tabulate_overload(found: list[tuple[Load, float]]) -> str:
    """The 99th percentile of each round beside (queue + rows) * median service time / rows."""
    rows, ratios = [], []
    for loaded, service in found:
        bound, p99 = (QUEUE + MAX_ROWS) * service / MAX_ROWS, percentile(loaded.seconds, 0.99)
        ratios.append(p99 / bound)
        rows.append([str(loaded.refused), f"{service:.2f}", f"{p99:.1f}", f"{p99 / bound:.2f}"])
    header = ["refusals", "median service s", "p99 s", "p99 / ((queue + rows) * service / rows)"]
    return f"{table(header, rows)}\n\nThe median ratio is {statistics.median(ratios):.2f}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=64, help="of a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=["throughput", "lone", "overload"])
    options = parser.parse_args()
    parts = []
    if "throughput" in options.parts:
        found = throughput(options.dtype, options.clients, options.requests, options.steps, options.rounds)
        parts.append(f"{options.clients} clients, {options.rounds} rounds of {options.requests} requests:\n")
        parts.append(tabulate(found))
    if "lone" in options.parts:
        served, direct = (statistics.median(each) for each in lone(options.dtype, options.steps, 8))
        parts.append(
            f"\nA lone request takes {served:.3f} s and a direct call of the pipeline {direct:.3f} s, "
            f"a ratio of {served / direct:.2f} (medians of 8)."
        )
    if "overload" in options.parts:
        rounds = overload(options.dtype, options.clients, options.requests, options.steps, options.rounds)
        about_load = f"{options.clients} clients, a queue of {QUEUE}, {options.requests} requests a round"
        parts.append(f"\nOverload, {about_load}:\n\n{tabulate_overload(rounds)}")
    about = f"The bundled model, 128x128, {options.steps} steps of ddim, guidance 3, {options.dtype}."
    write(f"serving_{'_'.join(options.parts)}_{options.dtype}", about, "\n".join(parts), torch.device("cpu"))


if __name__ == "__main__":
    main()
