"""All commands, in the order of `latentdiff --help`. Nothing slow is imported before a command runs."""

from latentdiff.cli import generate_command, series_commands, training_commands, model_commands  # noqa: F401, I001  (register)
from latentdiff.cli.root import app

__all__ = ["app"]
