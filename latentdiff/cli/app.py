"""Imports all modules that declare commands, in the order of `latentdiff --help`; nothing slow is imported here."""

from latentdiff.cli import generate_command, series_commands, training_commands, model_commands  # noqa: F401, I001  (register)
from latentdiff.cli.root import app

__all__ = ["app"]
