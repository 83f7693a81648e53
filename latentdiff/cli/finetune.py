"""`latentdiff finetune`."""

from typing import Any

from latentdiff.training.checkpoints import refuse_another_run
from latentdiff.training.finetune import plan_finetune
from latentdiff.training.run import start


def run(resume: bool, auto_batch: bool, **options: Any) -> None:
    """Plan, say what will be done, do it, say how to use it."""
    refuse_another_run(options["output"], resume)
    plan = plan_finetune(**options)
    print(plan.in_words(), flush=True)
    start(plan.config, plan.report, resume, auto_batch)
    output = plan.config.run.output
    options = {"full": f"--model {output / 'model'}", "textual_inversion": f"--embedding {output}"}
    use = options.get(plan.config.method, f"--lora {output}")
    base = f" --model {plan.config.base}" if plan.config.base and plan.config.method != "full" else ""
    print(f'done; use it with: latentdiff generate "{plan.config.data.prefix or "…"}"{base} {use} -o picture.png')
