"""The command line: one thin function a verb."""

import sys
import warnings

INTERRUPTED = 130  # what Typer makes of Ctrl-C


def main() -> None:
    """Run the command line; a mistake of the user's is one line and exit code 2."""
    from latentdiff.cli.app import app
    from latentdiff.errors import LatentDiffError

    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        app()
    except LatentDiffError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print("stopped", file=sys.stderr)
        raise
