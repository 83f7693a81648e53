"""Restart a command in several processes on this machine, as torchrun does."""

import os
import subprocess
import sys
from typing import NoReturn

from latentdiff.errors import InputError

OPTION = "--num-processes"


def launch(processes: int, auto_batch: bool) -> NoReturn:
    """Start this command in `processes` processes; torchrun takes this one's place, signals included.

    Raises InputError for more processes than GPUs, and with `auto_batch`.
    """
    if auto_batch:
        raise InputError(f"--auto-batch is for one process; lower the batch size, or leave out {OPTION}")
    import torch

    devices = torch.cuda.device_count()
    if 0 < devices < processes:
        raise InputError(f"{OPTION} {processes} is over the {devices} GPUs of this machine; give {devices} or fewer")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "latentdiff", *_without_option(sys.argv[1:])]
    sys.stdout.flush()
    if os.name == "nt":  # where execv returns to the shell at once
        raise SystemExit(subprocess.run(command, check=False).returncode)
    os.execv(sys.executable, command)


def _without_option(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith(OPTION):
            kept.append(word)
        skip = word == OPTION
    return kept
