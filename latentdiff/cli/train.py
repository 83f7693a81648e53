"""`latentdiff train`, in this process or in several processes started by torchrun."""

from pathlib import Path

from latentdiff.cli.launch import launch
from latentdiff.config.base import load_yaml
from latentdiff.config.train import train_config


def run(config: Path, overrides: list[str], resume: bool, skip_bad: bool, auto_batch: bool, processes: int) -> None:
    """Validate the config, then train."""
    checked = load_yaml(train_config, config, overrides)
    if processes > 1:
        launch(processes, auto_batch)
    from latentdiff.training.train import train

    train(checked, resume, skip_bad, auto_batch)
