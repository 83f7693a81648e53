"""Every task gives the CPU's results on a second device, without synchronisation in a training step."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff import LatentDiffusionPipeline
from tests.second_device.device import build
from tests.training.conftest import unet_values
from tests.training.small_runs import losses, run, text_config, vae_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="the second device is compiled"),
]
ROOT = Path(__file__).parents[2]
TASKS = ["vae", "critic", "text", "unet", "unet with text", "lora", "lora with text", "dora", "full", "inversion"]


def configs(folder: Path, model: Path, unet: dict[str, Any], output: Path) -> dict[str, dict[str, Any]]:
    """A short run of each task; a fine-tune also with class images, and all of a unet's losses."""
    finetune = {key: unet[key] for key in ("data", "optim", "run")} | {
        "task": "finetune", "base": str(model), "sample_prompts": ["a red disc"], "sample_steps": 2,
    }  # fmt: skip
    prior = {"prompt": "a red apple", "images": 4}
    made = {
        "vae": vae_config(folder, output),
        "critic": vae_config(folder, output) | {"adversarial_weight": 0.1, "adversarial_start": 1, "latent_noise": 0.5},
        "text": text_config(folder, output),
        "unet": unet | {"min_snr_gamma": 5.0, "noise_offset": 0.1, "huber_delta": 0.5},
        "unet with text": unet | {"train_text_encoder": True},
        "lora": finetune | {"prior": prior},
        "lora with text": finetune | {"text_encoder": True},
        "dora": finetune | {"method": "dora"},
        "full": finetune | {"method": "full"},
        "inversion": finetune | {"method": "textual_inversion", "data": finetune["data"] | {"prefix": "<toy>"}},
    }
    for name, config in made.items():
        config["run"] = config["run"] | {"output": str(output / name), "tracker": "none", "sample_every": 2}
        config["optim"] = config["optim"] | {"max_steps": 3, "lr_schedule": "constant"}
    return made


@pytest.fixture(scope="module")
def found(
    folder: Path, frozen: Path, model_folder: Path, xl_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The results of the second device in one process, and of the CPU here."""
    work = tmp_path_factory.mktemp("second device")
    unet = unet_values(folder, frozen, work / "unet")
    here, there = (configs(folder, model_folder, unet, work / place) for place in ("cpu", "other"))
    resumed = [there[name] | {"optim": there[name]["optim"] | {"max_steps": 5}} for name in ("vae", "unet", "lora")]
    for k in range(8):
        (work / "real").mkdir(exist_ok=True)
        Image.effect_noise((16, 16), 30 + k).convert("RGB").save(work / "real" / f"{k}.png")
        (work / "real" / f"{k}.txt").write_text("a cat face")
    evaluation = ["--real", work / "real", "--model", model_folder, "--steps", 2, "--resamples", 2]
    evaluation += ["--metrics", "sliced-wasserstein", "-o", work / "evaluation.json"]
    jobs = {
        "configs": list(there.values()), "resumed": resumed, "models": [str(model_folder), str(xl_folder)],
        "evaluate": list(map(str, evaluation)),
    }  # fmt: skip
    (work / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "tests.second_device.runs", str(build(work)), str(work / "jobs.json")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TQDM_DISABLE": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    trained = {name: answer["trained"][str(work / "other" / name)] for name in TASKS}
    resumed_runs = {n: answer["trained"][f"{work / 'other' / n} --resume"] for n in ("vae", "unet", "lora")}
    return answer | {"trained": trained, "resumed": resumed_runs, "here": here, "work": work}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_the_losses_of_the_cpu_and_no_step_waits(task: str, found: dict[str, Any]) -> None:
    expected = run(found["here"][task])
    there = found["trained"][task]
    assert losses(there["lines"]) == pytest.approx(losses(expected), rel=1e-4)
    held_out = [
        [line["held_out_loss"] for line in lines if "held_out_loss" in line] for lines in (expected, there["lines"])
    ]
    assert len(held_out[0]) >= 2 and held_out[1] == pytest.approx(held_out[0], rel=1e-4)
    assert not any("failures" in line for line in there["lines"])
    assert there["waits"] == [0, 0, 0]


@pytest.mark.parametrize("task", ["unet", "lora", "full"])
def test_frozen_encoders_take_no_memory_of_the_device(task: str, found: dict[str, Any]) -> None:
    assert found["trained"][task]["places"] == ["denoiser on other", "text on cpu", "vae on cpu"]
    assert found["trained"]["lora with text"]["places"] == ["denoiser on other", "text on other", "vae on cpu"]


@pytest.mark.parametrize("task", ["vae", "unet", "lora"])
def test_a_run_is_resumed(task: str, found: dict[str, Any], tmp_path: Path) -> None:
    config = found["here"][task]
    whole = run(
        config | {"run": config["run"] | {"output": str(tmp_path)}, "optim": config["optim"] | {"max_steps": 5}}
    )
    assert losses(found["resumed"][task]["lines"]) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.parametrize("name", ["model_folder", "xl_folder"])
@pytest.mark.parametrize("optimize", ["off", "auto"])
def test_images_equal_those_of_the_cpu(
    name: str, optimize: str, found: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    pipe = LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32", optimize="off")
    expected = (pipe("a red apple", seed=3, num_inference_steps=3, output_type="pt").images * 255).round()
    made = torch.tensor(found["images"][str(folder)][optimize])
    assert (made - expected).abs().max() <= 1


def test_an_evaluation_runs_on_the_device(found: dict[str, Any]) -> None:
    values = json.loads((found["work"] / "evaluation.json").read_text())["values"]
    assert np.isfinite(values["sliced_wasserstein"]["value"])
