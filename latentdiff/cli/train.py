"""`latentdiff train`, in this process or in several that torchrun starts."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from latentdiff.config.base import load_yaml
from latentdiff.config.train import train_config
from latentdiff.errors import InputError


def run(config: Path, overrides: list[str], resume: bool, skip_bad: bool, auto_batch: bool, processes: int) -> None:
    """Check the config, then train."""
    checked = load_yaml(train_config, config, overrides)
    if processes > 1:
        if auto_batch:
            raise InputError("--auto-batch is for one process; lower data.batch_size, or leave out --num-processes")
        _launch(processes, sys.argv[1:])
    from latentdiff.training.run import train

    train(checked, resume, skip_bad, auto_batch)


def _launch(processes: int, words: list[str]) -> NoReturn:
    """This command again, in `processes` processes here; torchrun takes this one's place, signals included."""
    import torch

    devices = torch.cuda.device_count()
    if 0 < devices < processes:
        raise InputError(f"--num-processes {processes} is over the {devices} GPUs here; give {devices} or fewer")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "latentdiff", *_without_processes(words)]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def _without_processes(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--num-processes"):
            kept.append(word)
        skip = word == "--num-processes"
    return kept
