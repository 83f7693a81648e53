"""The worker thread besides that of the engine."""

import threading
import time

import pytest

from latentdiff.serving.worker import Worker


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_work_is_done_in_order_on_a_thread_that_ends() -> None:
    worker, done = Worker("test-order"), []
    futures = [worker.submit(lambda k=k: done.append(k) or k * k) for k in range(20)]  # type: ignore[misc]
    assert [future.result(10) for future in futures] == [k * k for k in range(20)] and done == list(range(20))
    end = time.monotonic() + 10
    while threads("test-order") and time.monotonic() < end:
        time.sleep(0.01)
    assert not threads("test-order")
    assert worker.submit(lambda: "again").result(10) == "again"


def test_an_exception_reaches_the_caller_and_the_next_piece_of_work_runs() -> None:
    worker = Worker("test-error")
    failing, next_one = worker.submit(lambda: 1 / 0), worker.submit(lambda: 2)
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    assert next_one.result(10) == 2


@pytest.mark.parametrize("finish", [True, False])
def test_closing_finishes_or_cancels_what_waits(finish: bool) -> None:
    worker, release = Worker("test-close"), threading.Event()
    running, waiting = worker.submit(lambda: release.wait(10)), worker.submit(lambda: 3)
    while not running.running():
        time.sleep(0.001)
    threading.Timer(0.05, release.set).start()
    worker.close(finish)
    assert waiting.cancelled() is not finish and running.result(10)
    assert worker.submit(lambda: 4).cancelled()
