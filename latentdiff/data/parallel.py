"""Apply a function to many items in threads, in order and in bounded memory."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from latentdiff.images.decoding import BYTES_PER_PIXEL, MAX_PIXELS

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # items in flight per thread


def threaded_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` with one thread per processor. Unlike `Executor.map`, it submits items as results are consumed."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= threads * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class MemoryBudget:
    """Limits the total memory of several threads: a thread waits until the memory that it needs is available.

    limit: in bytes; a thread that needs more runs alone. To avoid deadlocks, a thread that uses several budgets must
    always reserve them in the same order.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes; wait until they are available, or until no other thread has reserved any."""
        with self._changed:
            self._changed.wait_for(lambda: self.used == 0 or self.used + size <= self.limit)
            self.used += size
        try:
            yield
        finally:
            with self._changed:
                self.used -= size
                self._changed.notify_all()


FILES = MemoryBudget(2**30)  # reserved while a picture is read and used
# reserved in addition while it is decoded: enough for one of the largest at a time
PIXELS = MemoryBudget(MAX_PIXELS * BYTES_PER_PIXEL)
