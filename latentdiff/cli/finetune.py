"""`latentdiff finetune`: plan a run, train, and print how to use the result."""

from pathlib import Path
from typing import Any

from latentdiff.cli.launch import launch
from latentdiff.config.train import FineTuneConfig
from latentdiff.training.finetune import plan_finetune, resumed_config
from latentdiff.training.processes import on_main_process, process_state
from latentdiff.training.run_folder import RunFolder
from latentdiff.training.train import train, train_checked


def run(
    pictures: str, output: Path, resume: bool, auto_batch: bool, skip_bad: bool, processes: int, **options: Any
) -> None:
    """Plan the run, print the plan, train, and print how to use the result. With `resume`, continue an earlier run."""
    folder = RunFolder(output)
    folder.check(resume, "finetune")
    if processes > 1:
        launch(processes, auto_batch)
    given = {name: value for name, value in options.items() if value is not None}
    if resume:
        config = resumed_config(pictures, folder, **given)
        train(config, resume, skip_bad, auto_batch)
    else:
        plan = on_main_process(lambda: plan_finetune(pictures, folder, skip_bad=skip_bad, **given))
        config = plan.config
        _print(plan.summary())
        train_checked(config, plan.checked, folder, resume, auto_batch)
    _print(f"done; use it with: {_use(config)}")


def _print(text: str) -> None:
    if process_state().is_main_process:
        print(text, flush=True)


def _use(config: FineTuneConfig) -> str:
    output = config.run.output
    options = {"full": f"--model {output / 'model'}", "textual_inversion": f"--embedding {output}"}
    base = f" --model {config.base}" if config.base and config.method != "full" else ""
    what = options.get(config.method, f"--lora {output}")
    return f'latentdiff generate "{config.data.prefix or "…"}"{base} {what} -o picture.png'
