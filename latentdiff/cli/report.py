"""`latentdiff report`."""

from pathlib import Path

from latentdiff.training.report import write_report


def run(folder: Path) -> None:
    """Write the page and say where it is."""
    print(write_report(folder))
