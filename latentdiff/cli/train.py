"""`latentdiff train`, in this process or in several that torchrun starts."""

import subprocess
import sys
from pathlib import Path

from latentdiff.config.base import load_yaml
from latentdiff.config.train import train_config
from latentdiff.errors import InputError


def run(config: Path, overrides: list[str], resume: bool, skip_bad: bool, auto_batch: bool, processes: int) -> int:
    """Check the config, then train; the exit code."""
    checked = load_yaml(train_config, config, overrides)
    if processes > 1:
        return _launch(processes, sys.argv[1:])
    from latentdiff.training.run import train

    train(checked, resume, skip_bad, auto_batch)
    return 0


def _launch(processes: int, words: list[str]) -> int:
    """This command again, in `processes` processes on this machine."""
    import torch

    devices = torch.cuda.device_count()
    if 0 < devices < processes:
        raise InputError(f"--num-processes {processes} is over the {devices} GPUs here; give {devices} or fewer")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "latentdiff", *_without_processes(words)]
    return subprocess.run(command, check=False).returncode


def _without_processes(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--num-processes"):
            kept.append(word)
        skip = word == "--num-processes"
    return kept
