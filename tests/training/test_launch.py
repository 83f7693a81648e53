"""`accelerate launch` with the files in configs/accelerate: the same results; FSDP shards, saves and resumes."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from latentdiff import LatentDiffusionPipeline
from latentdiff.checkpoints.components import read_vae
from latentdiff.checkpoints.lora_reader import FILE
from latentdiff.config.train import RunConfig, train_config
from latentdiff.errors import InputError, LatentDiffError
from latentdiff.training import sharding
from latentdiff.training.checkpoints import Staged
from latentdiff.training.processes import check_launcher
from tests.training.small_runs import Make, losses, run, vae_config

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def launch(file: str, config: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
    path = Path(config["run"]["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    command = [*launcher, "--config_file", f"configs/accelerate/{file}", "-m", "latentdiff", "train", str(path), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def logged(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_knows_every_key(file: Path) -> None:
    assert load_config_from_file(str(file)).num_processes == 2


@pytest.mark.slow
def test_fsdp_gives_the_run_of_one_process_and_resumes(unet_config: Make, tmp_path: Path) -> None:
    def config(name: str, batch: int, steps: int) -> dict[str, Any]:
        made = unet_config(tmp_path / name, max_steps=steps, lr_schedule="constant")
        made["data"]["batch_size"] = batch
        made["run"] |= {"gradient_accumulation_steps": 2, "sample_every": 3, "checkpoint_every": 3}
        return made

    one = run(config("one", 4, 6))
    for steps, words in ((3, ()), (6, ("--resume",))):
        done = launch("fsdp.yaml", config("fsdp", 2, steps), *words)
        assert done.returncode == 0, done.stderr[-3000:]
    two = logged(tmp_path / "fsdp")
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    seen = [[line["held_out_loss"] for line in lines if "held_out_loss" in line] for lines in (one, two)]
    assert len(seen[1]) == 2 and seen[1] == pytest.approx(seen[0], rel=1e-4)
    assert (tmp_path / "fsdp" / "checkpoints" / "step-00000006" / "pytorch_model_fsdp_0").is_dir()
    pipeline = LatentDiffusionPipeline.from_pretrained(tmp_path / "fsdp" / "model")
    assert pipeline("a red disc", num_inference_steps=2, height=16, width=16).images[0].size == (16, 16)


@pytest.mark.slow
def test_fsdp_trains_a_lora_with_frozen_weights(unet_config: Make, tmp_path: Path) -> None:
    base = unet_config(tmp_path / "base", max_steps=1)
    run(base)

    def config(name: str, batch: int) -> dict[str, Any]:
        parts = {"data": {"batch_size": batch}, "optim": {"max_steps": 2}, "run": {"output": str(tmp_path / name)}}
        made: dict[str, Any] = {key: base[key] | values for key, values in parts.items()}
        return made | {"task": "finetune", "base": str(tmp_path / "base" / "model")}

    one = run(config("one", 8))
    done = launch("fsdp.yaml", config("fsdp", 4))
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(logged(tmp_path / "fsdp")) == pytest.approx(losses(one), rel=1e-4)
    assert (tmp_path / "fsdp" / "model" / FILE).is_file()


@pytest.mark.slow
def test_fsdp_trains_a_vae_and_its_critic(folder: Path, tmp_path: Path) -> None:
    def config(name: str, batch: int) -> dict[str, Any]:
        made = vae_config(folder, tmp_path / name, max_steps=4)
        made["data"]["batch_size"] = batch
        return made | {"adversarial_weight": 0.1}

    one = run(config("one", 8))
    done = launch("fsdp.yaml", config("fsdp", 4))
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(logged(tmp_path / "fsdp")) == pytest.approx(losses(one), rel=1e-4)
    assert read_vae(tmp_path / "fsdp" / "model").config.scaling_factor > 0


@pytest.mark.slow
def test_the_cpu_launch_file_starts_two_processes(unet_config: Make, tmp_path: Path) -> None:
    done = launch("cpu.yaml", unet_config(tmp_path / "run", max_steps=2))
    assert done.returncode == 0, done.stderr[-3000:]
    states = sorted(tmp_path.glob("run/checkpoints/step-00000002/random_states_*.pkl"))
    assert len(states) == 2


@pytest.mark.parametrize(
    ("environment", "optimizer", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "muon", "optim.name=muon cannot be sharded; use adamw"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "adamw", "set fsdp_version: 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "adamw", "set zero_stage: 2"),
    ],
)
def test_unsupported_settings_are_errors(
    environment: dict[str, str], optimizer: str, message: str, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sharding, "process_state", lambda: SimpleNamespace(num_processes=2))
    config = train_config.validate_python(vae_config(folder, tmp_path, name=optimizer))
    with pytest.raises(InputError, match=message):
        sharding.sharding_plugin(nn.Linear(2, 2), config)


def test_fsdp_refuses_a_single_number(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr(sharding, "process_state", lambda: SimpleNamespace(num_processes=2))
    module = nn.ParameterDict({"temperature": nn.Parameter(torch.tensor(1.0))})
    config = train_config.validate_python(vae_config(folder, tmp_path))
    with pytest.raises(InputError, match=r"FSDP cannot shard temperature, a scalar; launch with configs/acc"):
        sharding.sharding_plugin(module, config)


def test_shards_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    failed = CheckpointException("write", {0: _wrap_exception(OSError("No space left on device"))})
    with pytest.raises(LatentDiffError, match=r"could not be written .*No space left"), Staged(True, tmp_path / "step"):
        raise failed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("saved", "message"), [("pytorch_model_fsdp_0", "with FSDP"), ("", "without sharding")])
def test_a_checkpoint_of_another_launch_is_refused(saved: str, message: str, tmp_path: Path) -> None:
    (tmp_path / saved).mkdir(exist_ok=True)
    with pytest.raises(InputError, match=f"was saved {message}"):
        sharding.refuse_another_layout(tmp_path, {} if saved else {"fsdp_plugin": None})


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            "mixed_precision=fp16 differs from run.mixed_precision=bf16",
        ),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, r"steps=4 differs from run.gradient_accumulation_steps=1"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, ""),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ""),
    ],
)
def test_a_launch_that_contradicts_the_run_is_refused(
    environment: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said) if said else nullcontext():
        check_launcher(RunConfig(output=tmp_path, mixed_precision="bf16"))
