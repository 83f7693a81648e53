"""Thousands of valid, invalid, cancelled and abandoned requests to one server: `python -m benchmarks.serving_soak`.

The server has a small random model. Reports whether every accepted request was answered, and the memory and threads of
the server over time.
"""

import argparse
import http.client
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch

from benchmarks.report import table, write
from benchmarks.serving_sides import Side, ours

WORKERS = 12
OPTIONS = ("--max-queue", "64", "--device", "cpu")


@dataclass
class Soak:
    """outcomes: the number of requests by kind and result. samples: (requests, resident MiB, threads) over time."""

    outcomes: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[int, float, int]] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Memory at the end relative to that after a fifth of the requests."""
        early = next(sample for sample in self.samples if sample[0] >= self.samples[-1][0] / 5)
        return self.samples[-1][1] / early[1]


def call(url: str, method: str, path: str, data: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
    """The status and the body of one request on a separate connection."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    try:
        connection.request(method, path, data, {"content-type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def body(chance: random.Random, **changes: Any) -> bytes:
    size = chance.choice([16, 16, 16, 32])
    values = {"prompt": "a red apple", "steps": 2, "seed": chance.randrange(2**40), "width": size, "height": 16}
    return json.dumps(values | changes).encode()


def finished(url: str, chance: random.Random) -> str:
    """A job that is posted and polled until it ends."""
    status, data = call(url, "POST", "/jobs", body(chance, images=chance.choice([1, 1, 2])))
    if status == 429:
        return "queue full"
    job = json.loads(data)["id"]
    while (state := json.loads(call(url, "GET", f"/jobs/{job}")[1]))["status"] in ("queued", "running"):
        time.sleep(0.01)
    return str(state["status"])


def cancelled(url: str, chance: random.Random) -> str:
    """A job that is posted and deleted."""
    status, data = call(url, "POST", "/jobs", body(chance, steps=20))
    if status == 429:
        return "queue full"
    return "cancelled" if call(url, "DELETE", f"/jobs/{json.loads(data)['id']}")[0] == 200 else "not cancelled"


def answered(url: str, chance: random.Random) -> str:
    """One synchronous request of the other two APIs."""
    values = {"prompt": "a red apple", "size": "16x16", "num_inference_steps": 2}
    if chance.random() < 0.5:
        status, data = call(url, "POST", "/v1/images/generations", json.dumps(values).encode())
        whole = status == 200 and bool(json.loads(data)["data"][0]["b64_json"])
    else:
        status, data = call(url, "POST", "/sdapi/v1/txt2img", body(chance))
        whole = status == 200 and len(json.loads(data)["images"]) == 1
    return "queue full" if status == 429 else "answered" if whole else f"unanswered ({status})"


def left(url: str, chance: random.Random) -> str:
    """A client that sends a request and closes the connection."""
    data = body(chance, steps=30)
    _send(url, data, len(data)).close()
    return "left"


def broken(url: str, chance: random.Random) -> str:
    """A body that is refused: not JSON, of the wrong type, above a limit, or shorter than its stated length."""
    bad = [b"{", b"[]", b"\xff\xfe", body(chance, steps="x"), body(chance, width=10**9), body(chance, extra=1)]
    if chance.random() < 0.1:
        _send(url, b"{", 10_000).close()
        return "cut short"
    status, _ = call(url, "POST", chance.choice(["/jobs", "/v1/images/generations"]), chance.choice(bad))
    return "refused" if 400 <= status < 500 else f"not refused ({status})"


def oversized(url: str, chance: random.Random) -> str:
    """A body above the limit by its stated length."""
    with _send(url, b"{", 2**40) as connection:
        status = int(connection.recv(64).split()[1])
    return "refused" if status == 413 else f"not refused ({status})"


def slowly_read(url: str, chance: random.Random) -> str:
    """Events that are read a few bytes at a time."""
    status, data = call(url, "POST", "/jobs", body(chance))
    if status == 429:
        return "queue full"
    with _connected(url) as connection:
        connection.sendall(f"GET /jobs/{json.loads(data)['id']}/events HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        read = b""
        while piece := connection.recv(256):
            read += piece
            time.sleep(0.002)
    return "events" if b"event: result" in read else "events without a result"


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=120)


def _send(url: str, data: bytes, length: int) -> socket.socket:
    connection = _connected(url)
    head = f"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}"
    connection.sendall(f"{head}\r\n\r\n".encode() + data)
    return connection


KINDS: dict[Callable[[str, random.Random], str], int] = {
    finished: 30, answered: 30, cancelled: 15, left: 5, broken: 10, oversized: 5, slowly_read: 5,
}  # fmt: skip
EXPECTED = {"finished", "answered", "cancelled", "left", "refused", "cut short", "events", "queue full"}


def soak(side: Side, requests: int) -> Soak:
    """Send the requests, several at a time, and measure the server's memory after every twentieth of them."""
    found, process = Soak(), psutil.Process(side.process.pid)

    def one(index: int) -> str:
        chance = random.Random(index)
        (kind,) = chance.choices([*KINDS], [*KINDS.values()])
        try:
            return kind(side.url, chance)
        except (OSError, http.client.HTTPException) as error:
            return f"{kind.__name__}: {type(error).__name__}"

    part = max(1, requests // 20)
    with ThreadPoolExecutor(WORKERS) as pool:
        for first in range(0, requests, part):
            found.outcomes.update(pool.map(one, range(first, min(first + part, requests))))
            memory = process.memory_info().rss / 2**20
            found.samples.append((min(first + part, requests), memory, process.num_threads()))
            print(*found.samples[-1], file=sys.stderr)
    return found


def model_folder(parent: Path) -> Path:
    """A small random model."""
    from latentdiff.checkpoints.components import write_pipeline
    from tests.small import small_components

    write_pipeline(small_components(), parent / "small")
    return parent / "small"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with ours("float32", *OPTIONS, model=model_folder(Path(folder))) as side:
            began = time.monotonic()
            found = soak(side, options.requests)
            seconds, alive = time.monotonic() - began, side.process.poll() is None
    outcomes = table(["outcome", "requests"], [[name, str(count)] for name, count in found.outcomes.most_common()])
    memory = table(
        ["requests", "resident MiB", "threads"], [[f"{n}", f"{mib:.1f}", f"{count}"] for n, mib, count in found.samples]
    )
    unexpected = sum(count for name, count in found.outcomes.items() if name not in EXPECTED)
    about = f"{options.requests} requests, {WORKERS} at a time, in {seconds:.0f} s, to a small random model, 2 steps."
    end = f"Memory at the end is {found.growth:.3f} of that after a fifth of the requests; the server "
    end += f"{'runs' if alive else 'ended'}; {unexpected} unexpected outcomes."
    write("serving_soak", about, f"{outcomes}\n\n{memory}\n\n{end}", torch.device("cpu"))


if __name__ == "__main__":
    main()
