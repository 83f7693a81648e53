"""Running a training config: check the data, build the task, train, write the report."""

import gc
import json
import sys
from collections.abc import Callable

import torch
import yaml
from accelerate.utils import broadcast_object_list, set_seed
from tqdm import tqdm

from latentdiff.checkpoints.components import read_limits, read_text_encoder
from latentdiff.checkpoints.folder import read_vae_config
from latentdiff.config.model import IdentityVAEConfig, side_multiple
from latentdiff.config.train import (
    DenoiserConfig,
    FineTuneConfig,
    TextTrainConfig,
    TrainConfig,
    UNetTrainConfig,
    VAETrainConfig,
)
from latentdiff.data.buckets import Fitting
from latentdiff.data.check import Report, check, check_command, unusable
from latentdiff.errors import InputError, is_out_of_memory
from latentdiff.files import atomic_path
from latentdiff.training.base_model import open_base_model
from latentdiff.training.checkpoints import CONFIG, REPORT, checkpoints, refuse_another_run
from latentdiff.training.loop import fit
from latentdiff.training.processes import process_state
from latentdiff.training.report import write_report
from latentdiff.training.task import Task
from latentdiff.training.trackers import check_tracker


def train(config: TrainConfig, resume: bool = False, skip_bad: bool = False, auto_batch: bool = False) -> None:
    """Check the pictures, then train what `config.task` names.

    Raises InputError when pictures cannot be used and `skip_bad` is not set.
    """
    refuse_another_run(config.run.output, resume, config.task)
    report = None
    if process_state().is_main_process:
        data = config.data
        report = check(data.train, *_limits(config), data.caption_template, data.prefix)
        captioned = bool(data.prefix) or isinstance(config, VAETrainConfig)
        model = config.base if isinstance(config, FineTuneConfig) else None
        command = check_command(data.train, model=model, trigger=data.prefix or None, resolution=data.resolution)
        bad = unusable(report, captioned, data.skip, skip_bad, command)
        if bad:
            tqdm.write(f"{len(bad)} pictures are skipped; see {config.run.output / REPORT}", file=sys.stderr)
        if report.warnings:
            tqdm.write(f"warnings: {report.warnings}; {config.run.output / REPORT} lists them", file=sys.stderr)
        config = config.model_copy(update={"data": config.data.model_copy(update={"skip": bad})})
    (config,) = broadcast_object_list([config])
    start(config, report, resume, auto_batch)


def start(config: TrainConfig, report: Report | None, resume: bool = False, auto_batch: bool = False) -> None:
    """Train as `config` says, in the folder `config.run.output`, which `refuse_another_run` has let pass.

    If memory runs out, `auto_batch` halves the batch, doubles the accumulation and continues from the last checkpoint;
    without it InputError is raised.
    """
    if auto_batch and process_state().num_processes > 1:  # one process would restart while the others wait for it
        raise InputError("--auto-batch is for one process; lower data.batch_size instead")
    check_tracker(config.run.tracker)
    if config.run.mixed_precision == "fp16" and process_state().device.type == "cpu":
        raise InputError("mixed_precision=fp16 needs a GPU and this machine has none; use bf16 or no")
    if report is not None:
        _write(config, REPORT, json.dumps(report.to_json(), ensure_ascii=False))
    while True:
        if process_state().is_main_process:
            _write(config, CONFIG, yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True))
        try:
            set_seed(config.run.seed)
            fit(_task(config), config, resume)
            if process_state().is_main_process:
                write_report(config.run.output)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            config, why = _halved(config), str(error).split("\n")[0]
            if not auto_batch:
                raise InputError(
                    f"out of memory ({why[:120]}); set data.batch_size={config.data.batch_size} and "
                    f"run.gradient_accumulation_steps={config.run.gradient_accumulation_steps} to continue, or pass "
                    "--auto-batch"
                ) from error
            tqdm.write(f"out of memory; continuing with batches of {config.data.batch_size}")
        resume = bool(checkpoints(config.run.output))
        gc.collect()  # accelerate has the model hold itself
        torch.cuda.empty_cache()


def _halved(config: TrainConfig) -> TrainConfig:
    """Half the batch, twice the accumulation: the same pictures and noise make up each step.

    Only the text encoder trains differently then: its loss contrasts the captions of one batch.
    """
    if config.data.batch_size % 2:
        checkpointing = isinstance(config, DenoiserConfig) and not config.run.gradient_checkpointing
        raise InputError(
            f"out of memory with data.batch_size={config.data.batch_size}, which cannot be halved; lower "
            f"data.resolution{', or set run.gradient_checkpointing: true' if checkpointing else ''}"
        )
    data = config.data.model_copy(update={"batch_size": config.data.batch_size // 2})
    accumulation = 2 * config.run.gradient_accumulation_steps
    return config.model_copy(
        update={"data": data, "run": config.run.model_copy(update={"gradient_accumulation_steps": accumulation})}
    )


def _write(config: TrainConfig, name: str, text: str) -> None:
    config.run.output.mkdir(parents=True, exist_ok=True)
    with atomic_path(config.run.output / name) as path:
        path.write_text(text, encoding="utf-8")


def _limits(config: TrainConfig) -> tuple[Fitting, Callable[[str], str]]:
    """The sizes that pictures are fitted to, and a function that returns a caption's words over the token limit."""
    if isinstance(config, UNetTrainConfig):
        vae = IdentityVAEConfig() if config.vae is None else read_vae_config(config.vae)
        multiple = side_multiple(config.model, vae)
        return Fitting.of(config.data, multiple), read_text_encoder(config.text_encoder).lost_words
    if isinstance(config, FineTuneConfig):
        limits = read_limits(open_base_model(config))
        return Fitting.of(config.data, limits.multiple), limits.text.lost_words
    square = config.data.model_copy(update={"buckets": False})
    return Fitting.of(square, 1), lambda caption: ""


def _task(config: TrainConfig) -> Task:
    match config:
        case VAETrainConfig():
            from latentdiff.training.autoencoder import AutoencoderTask

            return AutoencoderTask(config)
        case TextTrainConfig():
            from latentdiff.training.text_encoder import TextEncoderTask

            return TextEncoderTask(config)
        case UNetTrainConfig():
            from latentdiff.training.build import scratch_task

            return scratch_task(config)
        case FineTuneConfig():
            from latentdiff.training.build import finetune_task

            return finetune_task(config)
    raise TypeError(type(config))
