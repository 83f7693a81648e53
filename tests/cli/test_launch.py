"""`--num-processes`: how errors of the processes end the command."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from latentdiff.cli import launch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nowhere"], "error: /nowhere does not exist"),
        ([str(ROOT / "docs"), "--batch-size", "5"], "error: "),
        ([str(ROOT / "docs"), "--method", "lorra"], "error: "),
    ],
)
def test_an_error_of_all_processes_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "latentdiff", "finetune", *words, "-o", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--num-processes", "2"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (ChildFailedError("latentdiff", {0: ProcessFailure(0, 1, 2, "")}), 2),
        (ChildFailedError("latentdiff", {1: ProcessFailure(1, 2, -9, "")}), 137),
        (SignalException("stopped", sigval=signal.SIGTERM), 143),
        (None, 0),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(
    ended: Exception | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def agent(args: SimpleNamespace) -> None:
        asked.append((args.nproc_per_node, args.training_script, args.training_script_args))
        if ended:
            raise ended

    monkeypatch.setattr(run, "run", agent)
    monkeypatch.setattr(launch.logging, "disable", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["latentdiff", "train", "x.yaml", "--num-processes", "2", "--resume"])
    with pytest.raises(SystemExit) as stopped:
        launch.launch(2, auto_batch=False)
    assert stopped.value.code == code
    assert asked == [("2", "latentdiff", ["train", "x.yaml", "--resume"])]
