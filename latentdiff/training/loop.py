"""The training loop that every task uses: `Run`, the state of a run, and `fit`, which repeats its step."""

import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, set_seed
from torch import Tensor, nn
from tqdm import tqdm

from latentdiff.config.train import FineTuneConfig, RunConfig, TrainConfig, VAETrainConfig
from latentdiff.data.batch_sampler import Batches
from latentdiff.device_transfer import send
from latentdiff.errors import InputError, NonFiniteError
from latentdiff.runtime.memory import peak_memory
from latentdiff.runtime.native_layers import use_native_kernels
from latentdiff.runtime.training_convolution import use_native_convolutions
from latentdiff.training.checkpoints import Progress, Staged, into_plain, name_plainly, newest_good, save_checkpoint
from latentdiff.training.ema import EMA
from latentdiff.training.log import Log
from latentdiff.training.optimizers import learning_rate, make_optimizer
from latentdiff.training.processes import on_many_cpus, process_state
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.sharding import ShardedEMA, copy_to_shard, refuse_another_layout, sharding_plugin
from latentdiff.training.signals import StopSignal
from latentdiff.training.task import Task, evaluate
from latentdiff.training.trackers import open_tracker

ON_CPU = ("draw", "timesteps")  # used on the CPU, for random numbers and the schedule's tables
LOWEST_SCALE = 2.0 ** (16 - 50)  # of gradients: 2^16, halved by 50 consecutive overflows


class Stopped(SystemExit):
    """The run was stopped by a signal, after it saved a checkpoint."""


class Run:
    """State of a run in this process: the trained module, its moving average, the optimiser and the progress."""

    def __init__(self, task: Task, config: TrainConfig, folder: RunFolder, resume: bool) -> None:
        self.task, self.config, self.folder = task, config, folder
        optim, run = config.optim, config.run
        AcceleratorState._reset_state()  # accelerate keeps the first run's precision for the whole process
        self.sharding = sharding_plugin(task.module, config)
        self.sampler = Batches(
            task.data.buckets, config.data.batch_size, run.seed, accumulation=run.gradient_accumulation_steps,
            rank=process_state().process_index, world=process_state().num_processes, pictures=task.data.pictures,
        )  # fmt: skip
        self.accelerator = Accelerator(
            cpu=on_many_cpus(),
            mixed_precision=run.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(self.sampler.passes),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=_may_have_unused_weights(config))],
            **self.sharding,
        )
        set_seed(run.seed, device_specific=True)
        if self.accelerator.device.type == "cpu" and not run.compile:
            use_native_kernels(task.module)
            use_native_convolutions(task.module)
        trained = self._place()
        optimizer = make_optimizer(trained, optim)
        self.module, self.optimizer = self.accelerator.prepare(trained, optimizer)
        decay = optim.ema_decay
        self.ema = ShardedEMA(trained, task.module, decay) if self.sharding else EMA(trained, decay)
        self.progress = Progress(self.sampler.batch)
        self.accelerator.register_for_checkpointing(self.progress, self.ema)
        self.accelerator.register_save_state_pre_hook(name_plainly)
        self.accelerator.register_load_state_pre_hook(into_plain)
        if resume:
            self._restore()
        self.unseen: list[Tensor] = []  # losses that stay on the device, so that a step does not wait for it
        self.batches = self._batches()
        self.log = Log(self.folder.metrics)
        tracker = run.tracker if self.accelerator.is_main_process else "none"
        self.tracker = open_tracker(tracker, folder.path, config.model_dump(mode="json"))
        if self.accelerator.is_main_process:
            self.log.start(self.progress.step)

    def _place(self) -> nn.Module:
        """The module to train: the task's module on the device, or a copy for accelerate to shard."""
        module, device = self.task.module, self.accelerator.device
        if self.sharding:
            return copy_to_shard(module, device)
        return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _restore(self) -> None:
        """Load the newest intact checkpoint. Raises InputError if there is none."""
        checkpoint = newest_good(self.folder)
        if checkpoint is None:
            raise InputError(f"no checkpoint in {self.folder.path} is intact; start a new run in another folder")
        refuse_another_layout(checkpoint, self.sharding)
        options = {} if self.sharding else {"strict": False}  # frozen weights are not in it
        self.accelerator.load_state(str(checkpoint), **options)
        self.accelerator.step = 0  # no micro-batches since the last update; accumulation may have changed

    def _batches(self) -> Iterator[Any]:
        self.sampler.start = self.progress.step
        loader: Iterable[Any] = torch.utils.data.DataLoader(
            self.task.data,  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            num_workers=self.config.data.num_workers,
            collate_fn=self.task.collate,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # starting a loader must not advance the global one
        )
        return iter(loader)

    @property
    def learning_rate(self) -> float:
        return learning_rate(self.progress.step, self.config.optim)

    def step(self) -> dict[str, Tensor]:
        """One optimiser step; returns the mean of each loss over the micro-batches of this process."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        parts = [self._micro_batch() for _ in range(self.sampler.passes)]
        self.ema.update()
        self.progress.step += 1
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        self.unseen.append(means["loss"])
        return means

    def _micro_batch(self) -> dict[str, Tensor]:
        accelerator = self.accelerator
        with accelerator.accumulate(self.module):
            batch = self._send(next(self.batches))
            with accelerator.autocast():
                losses: dict[str, Tensor] = self.module(batch)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.module.parameters(), self.config.optim.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {name: value.detach().float() for name, value in losses.items()}

    def _send(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move the batch to the device, except what is used on the CPU."""
        device = self.accelerator.device
        return {k: send(v, device) if isinstance(v, Tensor) and k not in ON_CPU else v for k, v in batch.items()}

    def log_losses(self, losses: dict[str, Tensor], bar: Any) -> None:
        self.refuse_non_finite()
        values = {name: self.accelerator.reduce(value, "mean").item() for name, value in losses.items()}
        if self.accelerator.is_main_process:
            memory = f"{peak_memory(self.accelerator.device) / 2**30:.1f}G"
            bar.set_postfix({k: f"{v:.4f}" for k, v in values.items()} | {"memory": memory})
            values["lr"] = self.learning_rate
            self._log(**values)
            self.tracker.log(values, self.progress.step)

    def _log(self, **values: Any) -> None:
        """Write a line to the log. Pictures per step are those of all processes, for the speed in the report."""
        self.log.write(step=self.progress.step, time=time.time(), pictures_per_step=self.sampler.batch, **values)

    def refuse_non_finite(self) -> None:
        """Raise NonFiniteError naming the first step since the last call whose loss is NaN or infinite.

        Also raised if gradient scaling has skipped about 50 steps in a row.
        """
        seen = self.accelerator.reduce(torch.stack(self.unseen), "mean").tolist() if self.unseen else []
        for step, loss in enumerate(seen, self.progress.step - len(seen) + 1):
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"the loss is {loss} at step {step}; lower optim.learning_rate or set run.mixed_precision: bf16"
                )
        self.unseen.clear()
        if self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() <= LOWEST_SCALE:
            raise NonFiniteError(
                f"fp16 gradients overflowed in about 50 steps up to step {self.progress.step}, which were skipped; set "
                "run.mixed_precision: bf16, or lower optim.learning_rate"
            )

    def evaluate(self) -> None:
        """Log held-out metrics and samples of the averaged weights; every process computes its share."""
        self.task.module.eval()
        with self.ema.applied():
            found = evaluate(self.task, self.accelerator)
        self.task.module.train()
        self._note_best(found.figures.get("held_out_loss"))
        if not self.accelerator.is_main_process:
            return
        step = self.progress.step
        self._log(**found.figures, **_failures(found.failures))
        self.tracker.log(found.figures, step)
        if found.figures:
            tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.figures.items()))
        for failure in found.failures:
            tqdm.write(f"warning: evaluation at step {step} failed and was skipped: {failure}")
        if found.samples is not None:
            found.samples.save(self.folder.samples / f"{step:07d}.png")
            self.tracker.image("samples", found.samples.grid, step)

    def _note_best(self, loss: float | None) -> None:
        if loss is None:
            return
        better = loss < self.progress.best
        self.progress.best = min(self.progress.best, loss)
        self.progress.evaluations_since_best = 0 if better else self.progress.evaluations_since_best + 1

    @property
    def finished(self) -> bool:
        patience = self.config.run.early_stopping
        early = patience is not None and self.progress.evaluations_since_best >= patience
        return early or self.progress.step >= self.config.optim.max_steps

    def save(self) -> None:
        """Write a checkpoint, then the averaged weights as a model. Raises NonFiniteError before writing anything."""
        self.refuse_non_finite()
        save_checkpoint(self.accelerator, self.folder, self.progress.step)
        with self.ema.applied():
            if self.accelerator.is_main_process:
                with Staged(True, self.folder.model) as staged:
                    self.task.save(staged)
        self.accelerator.wait_for_everyone()


def fit(task: Task, config: TrainConfig, folder: RunFolder, resume: bool = False) -> None:
    """Train `task` to its last step, or until the held-out loss has not improved for `run.early_stopping` evaluations.

    Writes `metrics.jsonl`, `samples/`, `checkpoints/` and, with each checkpoint, a usable model in `model/`.
    Raises NonFiniteError if a loss is not finite, and Stopped after SIGTERM or Ctrl-C, once everything is saved.
    """
    run = Run(task, config, folder, resume)
    every: RunConfig = config.run
    run.module.train()
    main = run.accelerator.is_main_process
    bar = tqdm(total=config.optim.max_steps, initial=run.progress.step, disable=not main, smoothing=0.05)
    with closing(run.tracker), StopSignal() as request:
        if run.progress.step == 0 and isinstance(config, FineTuneConfig):
            run.evaluate()  # the base model, for comparison
        while not run.finished:
            losses = run.step()
            bar.update()
            step = run.progress.step
            if step % every.log_every == 0 or step == config.optim.max_steps:
                run.log_losses(losses, bar)
            if step % every.sample_every == 0 or step == config.optim.max_steps:
                run.evaluate()
            received = request.seen_by_any()
            if step % every.checkpoint_every == 0 or run.finished or received:
                run.save()
            if received and not run.finished:
                bar.close()
                tqdm.write(f"stopped and saved at step {step}; continue with --resume", file=sys.stderr)
                raise Stopped(128 + signal.Signals(received))
    bar.close()


def _may_have_unused_weights(config: TrainConfig) -> bool:
    """Whether some weights may have no gradient in a step: a discriminator before its start, or a text encoder's last
    layer.
    """
    match config:
        case VAETrainConfig():
            return config.adversarial_weight > 0 and config.adversarial_start > 0
        case FineTuneConfig():
            return config.text_encoder
    return False


def _failures(failures: list[str]) -> dict[str, Any]:
    return {"failures": failures} if failures else {}
