"""A run that was killed, stopped or ran out of disk space resumes with the same results."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from latentdiff.cli import finetune
from latentdiff.config.train import train_config
from latentdiff.errors import InputError, LatentDiffError
from latentdiff.training import checkpoints
from latentdiff.training.checkpoints import Staged, newest_good
from latentdiff.training.denoiser import DenoiserModule
from latentdiff.training.loop import Stopped
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.train import train
from tests.training.small_runs import Make, losses, run, vae_config, weights

ROOT = Path(__file__).parents[2]


def configured(make: Make, output: Path, accumulation: int = 2) -> dict[str, Any]:
    """16 pictures, 8 per step: an epoch has two steps."""
    config = make(output, max_steps=10)
    config["data"]["batch_size"] //= accumulation
    config["run"] |= {"gradient_accumulation_steps": accumulation, "checkpoint_every": 3}
    return config


def process(config: dict[str, Any], at: str, resume: bool) -> int:
    """Train in another process that ends as `at` specifies (see killed.py); returns its exit code."""
    path = Path(config["run"]["output"]).with_suffix(f".{at.replace(':', '-')}.yaml")
    path.write_text(yaml.safe_dump(config))
    words = [sys.executable, "-m", "tests.training.killed", str(path), at, *(["--resume"] if resume else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGTERM), done.stderr
    return done.returncode


def logged(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_killed_at_any_point_gives_bit_identical_losses_and_weights(unet_config: Make, tmp_path: Path) -> None:
    whole, cut = (configured(unet_config, tmp_path / name) for name in ("whole", "cut"))
    assert process(whole, "never", resume=False) == 0
    # In the first epoch before any checkpoint could be; in the second; between two micro-batches; while saving.
    for at, resume in (("save:1", False), ("micro:8", False), ("micro:6", True), ("save:2", True), ("micro:2", True)):
        assert process(cut, at, resume) == -signal.SIGKILL
    assert process(cut, "terminated:3", resume=True) == 128 + signal.SIGTERM
    assert process(cut, "never", resume=True) == 0
    assert losses(logged(tmp_path / "cut")) == losses(logged(tmp_path / "whole"))
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.parametrize("log_every", [1, 1000])
def test_sigterm_saves_the_current_step_and_writes_the_report(
    log_every: int, unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = DenoiserModule.forward, count(1)

    def terminated(self: DenoiserModule, batch: dict[str, Any]) -> Any:
        if next(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch)

    monkeypatch.setattr(DenoiserModule, "forward", terminated)
    config = configured(unet_config, tmp_path / "run", accumulation=1)
    config["run"]["log_every"] = log_every
    with pytest.raises(Stopped) as stopped:
        run(config)
    assert stopped.value.code == 128 + signal.SIGTERM
    report = tmp_path / "run" / "report.html"
    if log_every == 1:
        assert logged(tmp_path / "run")[-1]["step"] == 5 and "<td>5</td>" in report.read_text()
    else:
        assert logged(tmp_path / "run") == [] and not report.exists()  # nothing to show
    checkpoint = newest_good(RunFolder(tmp_path / "run"))
    assert checkpoint is not None and checkpoint.name == "step-00000005"


def test_a_run_is_neither_overwritten_nor_resumed_without_resume(unet_config: Make, tmp_path: Path) -> None:
    config = unet_config(tmp_path / "run", max_steps=5)
    with pytest.raises(InputError, match="has no checkpoint to resume from; omit --resume"):
        run(config, resume=True)
    run(config)
    with pytest.raises(InputError, match=r"step-00000005 exists; resume the run with --resume"):
        run(config)
    config["data"]["batch_size"] = 4
    config["optim"]["max_steps"] = 7
    with pytest.raises(InputError, match=r"used 8 pictures per step and now 4 are set; keep data\.batch_size times"):
        run(config, resume=True)


def test_a_run_of_another_task_is_not_resumed(folder: Path, unet_config: Make, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(unet_config(output, max_steps=1))
    before = (output / "config.yaml").read_text()
    named = f"{output} is a run of task unet, not {{}}; resume it with latentdiff train {output}/config.yaml --resume"
    with pytest.raises(InputError, match=re.escape(named.format("vae"))):
        run(vae_config(folder, output, max_steps=2), resume=True)
    with pytest.raises(InputError, match=re.escape(named.format("finetune"))):
        finetune.run(str(folder), output, resume=True, auto_batch=False, skip_bad=False, processes=1)
    assert (output / "config.yaml").read_text() == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(unet_config: Make, tmp_path: Path) -> None:
    config = unet_config(tmp_path / "cut", max_steps=10)
    whole = losses(run(unet_config(tmp_path / "whole", max_steps=10)))
    run(config)
    newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    assert [path.name for path in newest] == ["step-00000005", "step-00000010"]
    damaged = newest[1] / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match=r"step-00000010 is skipped: model.safetensors does not match its hash"):
        assert losses(run(config, resume=True)) == whole
    (newest[0] / checkpoints.MANIFEST).unlink()
    (newest[1] / checkpoints.MANIFEST).write_text("{")
    with (
        pytest.warns(UserWarning, match="is skipped"),
        pytest.raises(InputError, match=r"no checkpoint in .* is intact; start a new run"),
    ):
        run(config, resume=True)


def test_a_full_disk_keeps_the_previous_checkpoint(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = unet_config(tmp_path / "cut", max_steps=10)
    whole = losses(run(unet_config(tmp_path / "whole", max_steps=10)))

    def full(folder: Path, step: int, write: Any = checkpoints._write_manifest) -> None:
        if step == 10:
            raise OSError(28, "No space left on device")
        write(folder, step)

    monkeypatch.setattr(checkpoints, "_write_manifest", full)
    with pytest.raises(LatentDiffError, match="earlier checkpoints are intact: free space and continue"):
        run(config)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-00000005"]
    assert losses(run(config, resume=True)) == whole
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("PytorchStreamWriter failed")])
def test_files_that_cannot_be_written_are_one_line(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(LatentDiffError, match="earlier checkpoints are intact"), Staged(True, tmp_path / "model"):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_failed_folder_keeps_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "model"
    with Staged(True, final) as staged:
        (staged / "x").write_text("old")
    with pytest.raises(KeyError), Staged(True, final) as staged:
        (staged / "x").write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (final / "x").read_text() == "old"


def test_frozen_weights_are_not_saved_again(unet_config: Make, tmp_path: Path) -> None:
    run(unet_config(tmp_path / "run", max_steps=1))
    with safe_open(tmp_path / "run" / "checkpoints" / "step-00000001" / "model.safetensors", "pt") as file:
        assert {key.split(".")[0] for key in file.keys()} == {"unet"}  # noqa: SIM118


def test_a_second_run_in_one_process_keeps_its_own_precision(unet_config: Make, tmp_path: Path) -> None:
    config = unet_config(tmp_path / "run", max_steps=2)
    config["run"]["mixed_precision"] = "bf16"
    train(train_config.validate_python(config))
    plain = losses(run(unet_config(tmp_path / "plain", max_steps=2)))
    assert plain != losses(logged(tmp_path / "run"))


def test_auto_is_the_usual_precision_and_a_resumed_run_keeps_its_own(
    unet_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = unet_config(tmp_path / "run", max_steps=2)
    config["run"]["mixed_precision"] = "auto"
    for usual, steps in (("bf16", 2), ("no", 4)):
        monkeypatch.setattr("latentdiff.training.processes.usual_precision", lambda usual=usual: usual)
        config["optim"]["max_steps"] = steps
        run(config, resume=steps > 2)
        assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"]["mixed_precision"] == "bf16"
