"""Plan a fine-tuning run: check the pictures, and choose the settings that are not given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentdiff.checkpoints.components import read_limits
from latentdiff.checkpoints.model_source import OpenOptions
from latentdiff.config.base import load_yaml, validate
from latentdiff.config.data import CLASS_NAME, data_config
from latentdiff.config.train import BaseOptions, FineTuneConfig, train_config
from latentdiff.data.buckets import Fitting
from latentdiff.data.captions import prefixed
from latentdiff.data.check import DataCheck, check, check_command, unusable
from latentdiff.errors import InputError
from latentdiff.training.build_task import open_base_model
from latentdiff.training.processes import process_state, with_precision
from latentdiff.training.run_folder import RunFolder

VISITS = 40
SMALL_MODEL, LARGE_MODEL = 256, 768  # sides of the pictures in pixels
RATES = {  # for small and for other models
    "lora": (6e-4, 1e-4),
    "full": (1e-4, 1e-5),
    "textual_inversion": (5e-3, 5e-4),
}
OTHER_PROMPTS = ("a red apple", "a cat")  # probably not in the dataset, so they show whether the model forgets
OPTIONS = {"folder": "FOLDER", "base": "--model", "text_encoder": "--train-text"}  # where the names differ


@dataclass(frozen=True)
class Plan:
    """The config of a run, the result of the data check, and the command that prints this result."""

    config: FineTuneConfig
    checked: DataCheck
    command: str
    processes: int = 1

    def summary(self) -> str:
        config = self.config
        skipped = f", {len(config.data.skip)} skipped" if config.data.skip else ""
        enlarged = self.checked.enlarged
        factor = f", {enlarged} enlarged by up to {self.checked.largest_enlargement:.2f}" if enlarged else ""
        checkpointing = ", gradient checkpointing" if config.run.gradient_checkpointing else ""
        warnings = f"warnings: {self.checked.warnings}; {self.command} lists them\n" if self.checked.warnings else ""
        return (
            f"{self.checked.pictures} pictures from {self.checked.layout}{skipped}{factor}\n{warnings}"
            f"{config.method} on {config.base or 'the bundled model'}, {config.data.resolution} px, "
            f"{config.optim.max_steps} steps of {self._pictures_per_step()}, rate {config.optim.learning_rate}, "
            f"precision {config.run.mixed_precision}, caption dropout {config.caption_dropout}{checkpointing}\n"
            f"into {config.run.output}"
        )

    def _pictures_per_step(self) -> str:
        """The number of pictures per step, and how they are split over processes and batches."""
        batch, accumulation = self.config.data.batch_size, self.config.run.gradient_accumulation_steps
        total = batch * accumulation * self.processes
        factors = f"{self.processes} processes of " * (self.processes > 1) + f"{accumulation} batches of " * (
            accumulation > 1
        )
        return f"{total} ({factors}{batch})" if factors else f"{total}"


def plan_finetune(
    pictures: str | Path,
    run: RunFolder,
    base: str | None = None,
    method: str = "lora",
    trigger: str = "",
    caption_template: str = CLASS_NAME,
    skip_bad: bool = False,
    **given: Any,
) -> Plan:
    """Check the pictures before any weights are loaded, and choose the settings that are not given.

    pictures: as in `DataConfig.train`. run: the folder to train in. Small models get larger batches and learning
    rates. Each picture is used about 40 times. Raises InputError if the check finds errors and `skip_bad` is not set.
    """
    if method == "textual_inversion" and not trigger.strip():
        raise InputError(
            "method=textual_inversion needs a word to learn; pass one with --trigger, for example '<my-cat>'"
        )
    options = given.get("base_options", {})
    limits = read_limits(open_base_model(base, OpenOptions(**options)))
    sizes = {"resolution": limits.resolution} | {k: given[k] for k in ("resolution", "allow_upscale") if k in given}
    data = data_config(train=pictures, caption_template=caption_template, prefix=trigger, **sizes)
    checked = check(pictures, Fitting.of(data, limits.multiple), limits.text.lost_words, caption_template, trigger)
    command = check_command(data, base, BaseOptions(**options))
    bad = unusable(checked, bool(trigger), (), skip_bad, command)
    prompts = [prefixed(caption, trigger) for caption in (*(checked.examples or [""]), *OTHER_PROMPTS)]
    model = {"base": base, "base_options": options, "method": method, "sample_prompts": prompts}
    processes = process_state().num_processes
    settings = _settings(method, data.resolution, checked.pictures - len(bad), processes, given)
    settings["data"] |= {"train": pictures, "skip": bad, "prefix": trigger, "caption_template": caption_template}
    settings["data"] |= sizes
    settings["run"] |= {"output": run.path}
    config: FineTuneConfig = validate(train_config, model | settings, "finetune")
    return Plan(with_precision(config), checked, command, processes)


def _settings(method: str, resolution: int, usable: int, processes: int, given: dict[str, Any]) -> dict[str, Any]:
    """The training settings: as given, or else derived from the method, the resolution and the number of pictures."""
    small, inversion = resolution <= SMALL_MODEL, method == "textual_inversion"
    accumulation = given.get("gradient_accumulation", 1)
    batch = _global_batch(given.get("batch_size"), min(16 if small else 2, usable), processes * accumulation)
    rate = RATES.get(method, RATES["lora"])[0 if small else 1]
    steps = given.get("steps", max(100, min(4000, VISITS * usable // max(1, batch))))
    return {
        "task": "finetune",
        "prior": {"prompt": given["class_prompt"]} if given.get("class_prompt") else None,
        "caption_dropout": given.get("caption_dropout", 0.0 if inversion else 0.1),
        "data": {"batch_size": batch // (processes * accumulation)},
        "optim": {
            "max_steps": steps, "learning_rate": given.get("learning_rate", rate), "ema_decay": 0.99,
            "warmup_steps": max(0, min(50, steps // 10)), "weight_decay": 0.0 if inversion else 0.01,
        },
        "run": {
            "seed": given.get("seed", 0), "gradient_accumulation_steps": accumulation,
            "mixed_precision": given.get("mixed_precision", "auto"), "sample_every": max(1, steps // 4),
            "checkpoint_every": max(1, steps // 4), "log_every": max(1, min(10, steps // 10)),
            "gradient_checkpointing": resolution >= LARGE_MODEL,
        },
        **{name: given[name] for name in ("rank", "text_encoder", "init_word") if name in given},
    }  # fmt: skip


def _global_batch(given: int | None, default: int, parts: int) -> int:
    """Pictures per step, a multiple of `parts` (processes times accumulation). Raises InputError otherwise."""
    if given is None or given <= 0:  # the config rejects the latter
        return given if given is not None else max(1, default // parts) * parts
    if given % parts:
        raise InputError(
            f"--batch-size {given} must be a multiple of processes times --gradient-accumulation, {parts}; try "
            f"{max(1, given // parts) * parts}"
        )
    return given


def resumed_config(pictures: str | Path, run: RunFolder, steps: int | None = None, **given: Any) -> FineTuneConfig:
    """The config of the run to resume, with the number of steps replaced if given.

    Its output folder is `run`, which may have been moved since the run started. Raises InputError for options that
    differ from those of the run.
    """
    given |= given.pop("base_options", {})
    if given.get("mixed_precision") == "auto":  # the precision of the run
        del given["mixed_precision"]
    overrides = [] if steps is None else [f"optim.max_steps={steps}"]
    config: FineTuneConfig = load_yaml(train_config, run.config, overrides)
    original = {
        **config.base_options.model_dump(),
        "folder": Path(config.data.train), "base": config.base, "method": config.method, "trigger": config.data.prefix,
        "caption_template": config.data.caption_template, "init_word": config.init_word, "rank": config.rank,
        "class_prompt": config.prior and config.prior.prompt, "text_encoder": config.text_encoder,
        "batch_size": config.data.batch_size * config.run.gradient_accumulation_steps * process_state().num_processes,
        "gradient_accumulation": config.run.gradient_accumulation_steps, "caption_dropout": config.caption_dropout,
        "mixed_precision": config.run.mixed_precision,
        "learning_rate": config.optim.learning_rate, "seed": config.run.seed,
        "resolution": config.data.resolution, "allow_upscale": config.data.allow_upscale,
    }  # fmt: skip
    for name, value in (given | {"folder": Path(pictures)}).items():
        if value != original[name]:
            option = OPTIONS.get(name, "--" + name.replace("_", "-"))
            before = "none" if original[name] is None else original[name]
            raise InputError(
                f"{option} {value} differs from {before}, which {run.path} was started with; omit it, or use another -o"
            )
    return config.model_copy(update={"run": config.run.model_copy(update={"output": run.path})})
