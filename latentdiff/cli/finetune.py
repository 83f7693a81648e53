"""`latentdiff finetune`."""

from pathlib import Path
from typing import Any

from latentdiff.config.train import FineTuneConfig
from latentdiff.training.checkpoints import refuse_another_run
from latentdiff.training.finetune import going_on, plan_finetune
from latentdiff.training.run import start, train


def run(resume: bool, auto_batch: bool, skip_bad: bool, output: Path, **options: Any) -> None:
    """Plan, say what will be done, do it, say how to use it; or go on as was planned."""
    refuse_another_run(output, resume, "finetune")
    given = {name: value for name, value in options.items() if value is not None}
    if resume:
        config = going_on(output=output, **given)
        train(config, resume, skip_bad, auto_batch)
    else:
        plan = plan_finetune(output=output, skip_bad=skip_bad, **given)
        config = plan.config
        print(plan.in_words(), flush=True)
        start(config, plan.report, resume, auto_batch)
    print(f"done; use it with: {_use(config)}")


def _use(config: FineTuneConfig) -> str:
    output = config.run.output
    options = {"full": f"--model {output / 'model'}", "textual_inversion": f"--embedding {output}"}
    base = f" --model {config.base}" if config.base and config.method != "full" else ""
    what = options.get(config.method, f"--lora {output}")
    return f'latentdiff generate "{config.data.prefix or "…"}"{base} {what} -o picture.png'
