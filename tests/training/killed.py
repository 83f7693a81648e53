"""A training process that ends itself, to test resuming: `python -m tests.training.killed CONFIG AT [--resume]`.

AT is `micro:N` (SIGKILL in the N-th micro-batch), `save:N` (in the N-th save, before it is renamed), `terminated:N`
(SIGTERM to itself in the N-th micro-batch) or `never`.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import yaml

from latentdiff.config.train import train_config
from latentdiff.training import checkpoints
from latentdiff.training.denoiser import DenoiserModule
from latentdiff.training.train import train


def main(path: str, at: str, *resume: str) -> None:
    what, _, number = at.partition(":")
    calls = {"micro": 0, "save": 0}
    forward, write = DenoiserModule.forward, checkpoints._write_manifest

    def counted_forward(self: DenoiserModule, batch: dict[str, Any]) -> Any:
        calls["micro"] += 1
        if what in ("micro", "terminated") and calls["micro"] == int(number):
            os.kill(os.getpid(), signal.SIGKILL if what == "micro" else signal.SIGTERM)
        return forward(self, batch)

    def counted_write(folder: Path, step: int) -> None:
        write(folder, step)
        calls["save"] += 1
        if what == "save" and calls["save"] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    DenoiserModule.forward = counted_forward  # type: ignore[method-assign]
    checkpoints._write_manifest = counted_write
    train(train_config.validate_python(yaml.safe_load(Path(path).read_text())), resume=bool(resume))


if __name__ == "__main__":
    main(*sys.argv[1:])
