"""Run a training config: check the pictures, build the task, train, write the report."""

import gc
import json
import sys
from contextlib import suppress

import torch
import yaml
from accelerate.utils import set_seed
from tqdm import tqdm

from latentdiff.config.train import DenoiserConfig, FineTuneConfig, TrainConfig, VAETrainConfig
from latentdiff.data.check import DataCheck, check, check_command, unusable
from latentdiff.errors import InputError, is_out_of_memory
from latentdiff.files import write_atomically
from latentdiff.training.build_task import build_task, picture_limits
from latentdiff.training.loop import Stopped, fit
from latentdiff.training.processes import check_launcher, on_main_process, process_state, with_precision
from latentdiff.training.report import write_report
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.trackers import check_tracker


def train(config: TrainConfig, resume: bool = False, skip_bad: bool = False, auto_batch: bool = False) -> None:
    """Check the pictures, then run the training task that `config.task` names.

    Raises InputError if pictures cannot be used and `skip_bad` is not set.
    """
    folder = RunFolder(config.run.output)
    folder.check(resume, config.task)
    config = with_precision(config, folder if resume else None)
    config, checked = on_main_process(lambda: _check_pictures(config, folder, skip_bad))
    train_checked(config, checked, folder, resume, auto_batch)


def _check_pictures(config: TrainConfig, folder: RunFolder, skip_bad: bool) -> tuple[TrainConfig, DataCheck]:
    """The config with the names of the pictures to skip, and the result of the check."""
    data, path = config.data, folder.data_check
    fitting, lost_words = picture_limits(config)
    checked = check(data.train, fitting, lost_words, data.caption_template, data.prefix)
    captioned = bool(data.prefix) or isinstance(config, VAETrainConfig)
    model = (config.base, config.base_options) if isinstance(config, FineTuneConfig) else ()
    command = check_command(data, *model)
    bad = unusable(checked, captioned, data.skip, skip_bad, command)
    if bad:
        tqdm.write(f"{len(bad)} pictures are skipped; see {path}", file=sys.stderr)
    if checked.warnings:
        tqdm.write(f"warnings: {checked.warnings}; {path} lists them", file=sys.stderr)
    return config.model_copy(update={"data": data.model_copy(update={"skip": bad})}), checked


def train_checked(
    config: TrainConfig, checked: DataCheck, folder: RunFolder, resume: bool = False, auto_batch: bool = False
) -> None:
    """Train in `folder`, which may be used, on pictures that `checked` describes.

    If memory runs out, `auto_batch` halves the batch, doubles the accumulation and continues from the last checkpoint;
    without it InputError is raised.
    """
    if auto_batch and process_state().num_processes > 1:  # one process would restart while the others wait for it
        raise InputError("--auto-batch requires a single process; lower data.batch_size instead")
    check_tracker(config.run.tracker)
    check_launcher(config.run)
    if config.run.mixed_precision == "fp16" and process_state().device.type == "cpu":
        raise InputError("mixed_precision=fp16 requires a GPU and this machine has none; use bf16 or no")
    if process_state().is_main_process:
        write_atomically(folder.data_check, json.dumps(checked.to_json(), ensure_ascii=False))
    while True:
        if process_state().is_main_process:
            write_atomically(folder.config, yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True))
        try:
            return _fit_and_report(config, folder, resume)
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
        resume = bool(folder.checkpoints())
        gc.collect()  # accelerate's references to the model form a cycle
        torch.cuda.empty_cache()


def _fit_and_report(config: TrainConfig, folder: RunFolder, resume: bool) -> None:
    set_seed(config.run.seed)
    try:
        fit(build_task(config, folder), config, folder, resume)
    except Stopped:
        with suppress(InputError):  # if nothing was logged yet
            _write_report(folder)
        raise
    _write_report(folder)


def _write_report(folder: RunFolder) -> None:
    if process_state().is_main_process:
        write_report(folder)


def _halved(config: TrainConfig) -> TrainConfig:
    """Halve the batch and double the accumulation; each step still has the same pictures and noise.

    Only text encoder training changes, because its loss contrasts the captions of one batch.
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
