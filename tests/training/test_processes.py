"""Two processes give the same losses, learning rates and weights as one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.training.small_runs import Make, losses, run, text_config, vae_config

ROOT = Path(__file__).parents[2]


def train_in_two(config: dict[str, Any], *words: str) -> None:
    path = Path(config["run"]["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "latentdiff", "train", str(path), "--num-processes", "2", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def logged(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_two_processes_give_the_run_of_one(unet_config: Make, tmp_path: Path, accumulation: int) -> None:
    def config(name: str, batch: int, steps: int = 6) -> dict[str, Any]:
        made = unet_config(tmp_path / name, max_steps=6)
        made["data"]["batch_size"] = batch // accumulation
        made["run"] |= {"gradient_accumulation_steps": accumulation, "sample_every": 3, "checkpoint_every": 3}
        return made

    one = run(config("one", 8))
    train_in_two(config("two", 4))
    two = logged(tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert {line["pictures_per_step"] for line in (*one, *two)} == {8}  # of both processes
    assert [line["lr"] for line in two if "lr" in line] == [line["lr"] for line in one if "lr" in line]
    seen = [[line["held_out_loss"] for line in lines if "held_out_loss" in line] for lines in (one, two)]
    assert len(seen[1]) == 2 and seen[1] == pytest.approx(seen[0], rel=1e-5)
    assert (tmp_path / "two" / "samples" / "0000006.png").is_file()
    first, second = (
        load_file(tmp_path / name / "model" / "unet" / "diffusion_pytorch_model.safetensors") for name in ("one", "two")
    )
    # Compare norms: Adam divides by the size of the gradient, so that rounding of a tiny gradient changes a weight.
    assert all((first[key] - second[key]).norm() < 1e-3 * first[key].norm() + 1e-5 for key in first)


@pytest.mark.slow
def test_two_processes_resume(unet_config: Make, tmp_path: Path) -> None:
    config = unet_config(tmp_path / "two", max_steps=5)
    config["data"]["batch_size"] = 4
    train_in_two(config)
    config["optim"]["max_steps"] = 8
    train_in_two(config, "--resume")
    assert [line["step"] for line in logged(tmp_path / "two") if "loss" in line] == list(range(1, 9))


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_resumes_with_another_number_of_processes(unet_config: Make, tmp_path: Path, first: int) -> None:
    """Including the weights: the following steps have the losses of a run with one process."""
    whole = run(unet_config(tmp_path / "whole", max_steps=6, lr_schedule="constant"))
    config = unet_config(tmp_path / "run", max_steps=3, lr_schedule="constant")
    for processes in (first, 3 - first):
        config["data"]["batch_size"] = 8 // processes
        words = () if processes == first else ("--resume",)
        if processes == 2:
            train_in_two(config, *words)
        else:
            run(config, resume=bool(words))
        config["optim"]["max_steps"] = 6
    assert losses(logged(tmp_path / "run")) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["latentdiff"], ["accelerate.commands.accelerate_cli", "launch"]])
def test_finetune_in_two_processes_gives_the_run_of_one(
    launcher: list[str], folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    words = ["finetune", str(folder), "--model", str(model_folder), "--steps", "3", "--batch-size", "8"]
    words += ["--gradient-accumulation", "2", "--mixed-precision", "no"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

    def finetune(output: Path, start: list[str]) -> str:
        command = [sys.executable, "-m", *start, *words, "-o", str(output)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    finetune(tmp_path / "one", ["latentdiff"])
    if launcher == ["latentdiff"]:
        words += ["--num-processes", "2"]
    else:
        file = str(ROOT / "configs" / "accelerate" / "cpu.yaml")
        launcher = [*launcher, "--main_process_port", "0", "--config_file", file, "-m", "latentdiff"]
    output = finetune(tmp_path / "two", launcher)
    assert output.count("8 (2 processes of 2 batches of 2)") == 1 and output.count("done; use it with") == 1
    assert losses(logged(tmp_path / "two")) == pytest.approx(losses(logged(tmp_path / "one")), rel=1e-4)


@pytest.mark.slow
def test_two_processes_share_one_tokenizer(folder: Path, tmp_path: Path) -> None:
    config = text_config(folder, tmp_path / "run", max_steps=2)
    config["data"]["batch_size"] = 4
    train_in_two(config)
    assert [line["step"] for line in logged(tmp_path / "run") if "loss" in line] == [1, 2]


@pytest.mark.slow
def test_two_processes_train_weights_that_have_no_gradient_yet(folder: Path, tmp_path: Path) -> None:
    config = vae_config(folder, tmp_path / "run", max_steps=4) | {"adversarial_weight": 0.1, "adversarial_start": 2}
    config["data"]["batch_size"] = 4
    train_in_two(config)
    assert [("critic" in line) for line in logged(tmp_path / "run") if "loss" in line] == [False, False, True, True]


@pytest.mark.slow
def test_sigterm_makes_all_processes_save(unet_config: Make, tmp_path: Path) -> None:
    config = unet_config(tmp_path / "run", max_steps=100_000)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "latentdiff", "train", str(path), "--num-processes", "2"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as started:
        while not (tmp_path / "run" / "checkpoints").is_dir():
            assert started.poll() is None
            time.sleep(0.1)
        started.send_signal(signal.SIGTERM)
        started.wait(60)
    last = logged(tmp_path / "run")[-1]["step"]
    assert [path.name for path in sorted(tmp_path.glob("run/checkpoints/*"))][-1] == f"step-{last:08d}"
