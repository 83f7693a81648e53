"""One fine-tune in a separate process: `python -m benchmarks.finetune_sides ours|diffusers SETTINGS.json`.

Prints as JSON the seconds and the seconds of CPU time that the training took, including all preparation of pictures,
and the process' peak memory in bytes. Neither side generates samples. diffusers' side is written with diffusers and
peft like its LoRA scripts: the U-Net's attention is adapted, VAE and text encoder run in every step, pictures are
cropped to squares, the rate is constant and the weights are not averaged. It gets our rank, rate, batch size, number of
steps and class pictures. Both use the GPU if there is one, and compute in bfloat16 on GPUs and on processors with
instructions for it, and in float32 on others.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from latentdiff.checkpoints.components import read_pipeline
from latentdiff.checkpoints.locate_model import locate
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.config.base import Config
from latentdiff.config.train import FineTuneConfig, OptimConfig, PriorConfig
from latentdiff.data.archives import open_container
from latentdiff.data.check import DataCheck
from latentdiff.data.dataset import load_pixels, read_rows
from latentdiff.data.layouts import DataRow
from latentdiff.training.build_task import open_base_model
from latentdiff.training.finetune import plan_finetune
from latentdiff.training.frozen import COMPUTE, autocast
from latentdiff.training.prior import prior_rows
from latentdiff.training.processes import process_state
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.train import train_checked

SUBJECT_CLASS = "a bear"
OPTIM = "lr_schedule", "ema_decay"
AFTERWARDS = "timestep_power", *OPTIM  # settings of the config that `finetune` has no option for


class Settings(Config):
    """The settings of one training run. None: the default of `latentdiff finetune`. prior: the folder of the class
    pictures.
    """

    folder: Path
    output: Path
    base: str | None = None
    batch_size: int | None = None
    resolution: int | None = None
    method: str = "lora"
    class_prompt: str | None = None
    prior: Path | None = None
    learning_rate: float | None = None
    rank: int | None = None
    steps: int | None = None
    text_encoder: bool | None = None
    caption_dropout: float | None = None
    timestep_power: float | None = None
    lr_schedule: str | None = None
    ema_decay: float | None = None
    seed: int | None = None

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.output)

    def plan(self) -> tuple[FineTuneConfig, DataCheck]:
        """Our config with the defaults filled in, and the result of the check."""
        given = self.model_dump(exclude_none=True, exclude={"folder", "output", "prior", "seed", *AFTERWARDS})
        plan = plan_finetune(self.folder, self.run, **given)
        config, last = plan.config, plan.config.optim.max_steps
        changes: dict[str, Any] = {"sample_prompts": ()}
        seed = config.run.seed if self.seed is None else self.seed
        changes["run"] = config.run.model_copy(
            update={"sample_every": last, "checkpoint_every": last, "tracker": "none", "seed": seed}
        )
        if self.timestep_power is not None:
            changes["timestep_power"] = self.timestep_power
        optim = {name: getattr(self, name) for name in OPTIM if getattr(self, name) is not None}
        changes["optim"] = OptimConfig(**(config.optim.model_dump() | optim))
        if self.class_prompt:
            changes["prior"] = PriorConfig(prompt=self.class_prompt, folder=self.prior)
        return config.model_copy(update=changes), plan.checked


def ours(settings: Settings) -> None:
    train_checked(*settings.plan(), settings.run)


class Pictures(Dataset[dict[str, Tensor]]):
    """Pictures decoded, cropped and tokenised on every access."""

    def __init__(self, rows: list[DataRow], size: int, tokenizer: Any) -> None:
        self.rows, self.size, self.tokenizer = rows, size, tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        ids = self.tokenizer(row.captions[0], padding="max_length", truncation=True, return_tensors="pt").input_ids[0]
        return {"pixels": load_pixels(row, self.size), "ids": ids}


def diffusers_script(settings: Settings) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    config, _ = settings.plan()
    torch.manual_seed(config.run.seed)
    dtype, device = COMPUTE[config.run.mixed_precision], process_state().device
    pipe: Any = StableDiffusionPipeline.from_pretrained(locate(config.base), torch_dtype=dtype).to(device)
    unet = pipe.unet.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(
        LoraConfig(r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=targets)
    )
    cast_training_params(unet, dtype=torch.float32)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, config.optim.learning_rate, weight_decay=0.01)
    rows = list(read_rows(config.data.train, config.data))
    if config.prior and config.prior.folder:  # equally many of each kind
        classes = class_rows(config.prior.folder, config.prior.prompt)
        rows = [row for k in range(len(classes)) for row in (rows[k % len(rows)], classes[k])]
    data = Pictures(rows, config.data.resolution, pipe.tokenizer)
    loader = DataLoader(data, config.data.batch_size, shuffle=True, drop_last=True)
    batches = (batch for _ in iter(int, 1) for batch in loader)
    unet.train()
    for _ in range(config.optim.max_steps):
        batch = {name: value.to(device) for name, value in next(batches).items()}
        with autocast(config.run.mixed_precision, device):
            loss = step_loss(pipe, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    StableDiffusionPipeline.save_lora_weights(settings.output / "model", get_peft_model_state_dict(unet))


def step_loss(pipe: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        latents = (
            pipe.vae.encode(batch["pixels"].to(pipe.vae.dtype)).latent_dist.sample() * pipe.vae.config.scaling_factor
        )
        hidden = pipe.text_encoder(batch["ids"], return_dict=False)[0]
    latents, scheduler = latents.float(), pipe.scheduler
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
    output = pipe.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, hidden, return_dict=False)[0]
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    return F.mse_loss(output.float(), target)


def class_rows(folder: Path, prompt: str) -> list[DataRow]:
    """The class pictures that `make_prior` generated."""
    (kept,) = folder.iterdir()
    container = open_container(kept)
    return [DataRow(container, path.name, (prompt,)) for path in sorted(kept.glob("*.png"))]


def make_prior(settings: Settings) -> None:
    """Generate the class pictures once, for both sides, so that they are in neither side's time."""

    config, _ = settings.plan()
    assert config.prior is not None
    base = read_pipeline(open_base_model(config.base, OpenOptions()), torch.float32)
    prior_rows(base, config, config.prior, settings.run)


def run_side(side: str, settings: Settings) -> dict[str, float]:
    """The result of one side, from a new process."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(settings.model_dump_json())
        file.flush()
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.finetune_sides", side, file.name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _peak_memory() -> int:
    """Peak resident bytes of this program; `ru_maxrss` would include the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


SIDES = {"ours": ours, "diffusers": diffusers_script, "prior": make_prior}


def main() -> None:
    side, file = sys.argv[1:]
    settings = Settings.model_validate_json(Path(file).read_text(encoding="utf-8"))
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        if side != "prior" and settings.class_prompt:
            make_prior(settings)
        began, began_cpu = time.perf_counter(), time.process_time()
        SIDES[side](settings)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": _peak_memory()}), file=answers)


if __name__ == "__main__":
    main()
