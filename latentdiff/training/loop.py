"""The training loop, one for every task: read it top to bottom."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from latentdiff.config.train import OptimConfig, RunConfig, TrainConfig
from latentdiff.data.batches import Batches
from latentdiff.errors import NonFiniteError
from latentdiff.files import atomic_path
from latentdiff.runtime.kernels import use_native_kernels
from latentdiff.training.checkpoints import Progress, newest_checkpoint, save_checkpoint
from latentdiff.training.ema import EMA
from latentdiff.training.muon import Muon, muon_groups


class Task(Protocol):
    """What differs between training a VAE, a text encoder and a denoiser.

    `module(batch)` returns named losses, each a scalar; `loss` is the one that is minimised.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def data(self) -> torch.utils.data.Dataset[Any]: ...

    def evaluate(self) -> tuple[dict[str, float], Image.Image | None]:
        """Held-out figures and a grid of pictures, made with the averaged weights."""

    def save(self, folder: Path) -> None:
        """Write what the module holds as a model that can be used."""


@dataclass
class Log:
    """`metrics.jsonl`, one line an event."""

    path: Path

    def write(self, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def fit(task: Task, config: TrainConfig) -> None:
    """Train `task` to its last step, from the newest checkpoint in the output folder if there is one.

    Writes `metrics.jsonl`, `samples/`, `checkpoint/` and, at each checkpoint, the usable model in `model/`.
    Raises NonFiniteError when the loss is no number.
    """
    optim, run = config.optim, config.run
    AcceleratorState._reset_state()  # accelerate keeps the first run's precision for the whole process
    accelerator = Accelerator(
        mixed_precision=run.mixed_precision, gradient_accumulation_steps=run.gradient_accumulation_steps
    )
    set_seed(run.seed, device_specific=True)
    log = Log(run.output / "metrics.jsonl")
    task.module.to(accelerator.device)
    task.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_native_kernels(task.module)
    optimizer = _optimizer(task.module, optim)
    ema = EMA(task.module, optim.ema_decay)
    progress = Progress()
    module, optimizer = accelerator.prepare(task.module, optimizer)
    accelerator.register_for_checkpointing(progress, ema)
    if checkpoint := newest_checkpoint(run.output):
        accelerator.load_state(str(checkpoint))
    batches = _batches(task, config, progress.step, accelerator)
    module.train()

    bar = tqdm(total=optim.max_steps, initial=progress.step, disable=not accelerator.is_main_process, smoothing=0.05)
    while progress.step < optim.max_steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress.step, optim)
        for _ in range(run.gradient_accumulation_steps):
            with accelerator.accumulate(module):
                with accelerator.autocast():
                    losses = module(_to(next(batches), accelerator.device))
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(module.parameters(), optim.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        ema.update()
        progress.step += 1
        bar.update()
        if progress.step % run.log_every == 0:
            _report(progress.step, losses, learning_rate(progress.step, optim), bar, log, accelerator)
        if progress.step % run.sample_every == 0 or progress.step == optim.max_steps:
            _evaluate(task, ema, progress.step, run, log, accelerator)
        if progress.step % run.checkpoint_every == 0 or progress.step == optim.max_steps:
            save_checkpoint(accelerator, task, ema, run.output)
    bar.close()


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Linear warm-up, then half a cosine to `final_learning_rate`: a pure function of the optimiser step."""
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, optim.max_steps - optim.warmup_steps)
    height = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return optim.final_learning_rate + (optim.learning_rate - optim.final_learning_rate) * height


def _optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    if optim.name == "muon":
        return Muon(muon_groups(module, optim.weight_decay), optim.learning_rate, optim.betas)
    groups = _groups(module, optim.weight_decay)
    return torch.optim.AdamW(groups, optim.learning_rate, optim.betas, fused=True)


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and kernels only; gains and biases are left free."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _batches(task: Task, config: TrainConfig, step: int, accelerator: Accelerator) -> Iterator[Any]:
    """Micro-batches from the first that step `step` needs, this process's share of them."""
    sampler = Batches(
        count=len(task.data),  # type: ignore[arg-type]
        batch_size=config.data.batch_size,
        seed=config.run.seed,
        start=step * config.run.gradient_accumulation_steps,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    loader = torch.utils.data.DataLoader(
        task.data,
        batch_sampler=sampler,
        num_workers=config.data.num_workers,
        generator=torch.Generator(),  # the global one belongs to the losses: starting a loader must not move it
    )
    return iter(loader)


def _to(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _report(step: int, losses: dict[str, Tensor], lr: float, bar: Any, log: Log, accelerator: Accelerator) -> None:
    values = {name: accelerator.reduce(value.detach().float(), "mean").item() for name, value in losses.items()}
    if not math.isfinite(values["loss"]):
        raise NonFiniteError(
            f"the loss is {values['loss']} at step {step}; lower optim.learning_rate or set run.mixed_precision: bf16"
        )
    if accelerator.is_main_process:
        bar.set_postfix({k: f"{v:.4f}" for k, v in values.items()})
        log.write(step=step, lr=lr, time=time.time(), **values)


def _evaluate(task: Task, ema: EMA, step: int, run: RunConfig, log: Log, accelerator: Accelerator) -> None:
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    task.module.eval()
    with torch.no_grad(), ema.applied(), accelerator.autocast():
        figures, grid = task.evaluate()
    task.module.train()
    log.write(step=step, time=time.time(), **figures)
    tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))
    if grid is not None:
        (run.output / "samples").mkdir(exist_ok=True)
        with atomic_path(run.output / "samples" / f"{step:07d}.png") as path:
            grid.save(path)
