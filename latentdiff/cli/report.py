"""`latentdiff report`: write the report of a training run again."""

from pathlib import Path

from latentdiff.training.report import write_report
from latentdiff.training.run_folder import RunFolder


def run(folder: Path) -> None:
    """Write the page and print its path."""
    print(write_report(RunFolder(folder)))
