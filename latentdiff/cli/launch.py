"""Run a command in several processes on this machine: with torchrun's agent, or as children of this process."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, NoReturn

from latentdiff.errors import InputError

OPTION = "--num-processes"


def launch(processes: int, auto_batch: bool) -> NoReturn:
    """Run this command in `processes` processes under torchrun's agent, then exit with the first failure's code, or 0.

    The processes print their own messages; the agent's report is omitted. SIGTERM and Ctrl-C are passed on.
    Raises InputError for more processes than GPUs, and with `auto_batch`.
    """
    if auto_batch:
        raise InputError(f"--auto-batch requires a single process; lower the batch size, or omit {OPTION}")
    check_devices(processes)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    words = ["--standalone", "--nproc-per-node", str(processes), "-m", "latentdiff", *_without_option(sys.argv[1:])]
    sys.stdout.flush()
    logging.disable(logging.CRITICAL)  # the agent's report on the exit of its processes
    try:
        run(parse_args(words))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        raise SystemExit(code if code > 0 else 128 - code) from None  # negative: minus the number of a signal
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None
    raise SystemExit(0)


def check_devices(processes: int) -> None:
    """Raise InputError for more processes than GPUs."""
    import torch

    devices = torch.cuda.device_count()
    if 0 < devices < processes:
        raise InputError(
            f"{OPTION} {processes} is more than the {devices} GPUs of this machine; use {devices} or fewer"
        )


def local_device(device: str) -> str:
    """The GPU of this process if a launcher started it and no GPU is named; otherwise the given device."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank and device in ("auto", "cuda") and torch.cuda.is_available() else device


@contextmanager
def started_processes(processes: int) -> Iterator[None]:
    """Run this command in `processes` processes, of which this is the first, and wait for the others at the end.

    They have torchrun's variables. If a launcher started this process, no others are started. Raises InputError if
    another process fails; all are stopped when this one is.
    """
    if processes == 1 or "RANK" in os.environ:
        yield
        return
    import torch

    threads = max(1, torch.get_num_threads() // processes)
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        stack.callback(signal.signal, signal.SIGTERM, before)
        others = [_start(rank, processes, threads, stack) for rank in range(1, processes)]
        yield
        for rank, (process, errors) in enumerate(others, 2):
            if code := process.wait():
                errors.seek(0)
                last = errors.read().strip().rpartition("\n")[2].removeprefix("error: ")
                raise InputError(
                    f"process {rank} of {processes} failed ({last or f'exit code {code}'}); run this again"
                )


def _start(rank: int, processes: int, threads: int, stack: ExitStack) -> tuple[subprocess.Popen[str], IO[str]]:
    """Start a process, which is terminated when `stack` closes; returns it and its stderr."""
    errors = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "OMP_NUM_THREADS": threads}
    environment = os.environ | {name: str(value) for name, value in names.items()}
    command = [sys.executable, "-m", "latentdiff", *_without_option(sys.argv[1:])]
    process = stack.enter_context(subprocess.Popen(command, stderr=errors, text=True, env=environment))
    stack.callback(process.terminate)
    return process, errors


def _without_option(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith(OPTION):
            kept.append(word)
        skip = word == OPTION
    return kept
