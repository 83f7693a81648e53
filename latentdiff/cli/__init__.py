"""The command line. `main` turns errors of the user into one line and exit code 2.

`app` imports the modules `*_command` and `*_commands`, which declare the options of each command; the module with the
name of the command runs it. Most other modules are parts of `generate`, in this order: `request` (the options),
`edit_options` and `refiner_options`, `expansion` and `prompts_file` (many prompts), `image_plan` (the images to
generate), `open_pipeline`, and `image_generator`.
"""

import io
import os
import sys
import time
import warnings
from typing import Any, NoReturn

INTERRUPTED = 130  # Typer's exit code for Ctrl-C
FIRST_REPORTS_S = 3  # until the first of several processes has printed its error


def main() -> None:
    """Run the command line; a user error is one line and exit code 2."""
    from typer import BadParameter

    from latentdiff.cli.app import app
    from latentdiff.errors import LatentDiffError, is_out_of_memory

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows other characters escaped
            stream.reconfigure(errors="backslashreplace")
    for word in sys.argv[1:]:  # tokenizers, recipes and configs need UTF-8
        if word.encode(errors="ignore").decode() != word:
            _refuse(f"{word!a} is not UTF-8 text; use a UTF-8 terminal")
    usage_error: Any = BadParameter.__base__  # Click's, which Typer takes from one package or another
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        code = app(standalone_mode=False)
    except LatentDiffError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error}; check the path, its permissions and the free disk space")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            _let_first_report()  # if another process closed the connection, its message states the cause
            raise
        _refuse(f"out of memory ({str(error)[:120]}); generate smaller images, or fewer in a batch")
    except usage_error as error:
        _explain(error)
    if code == INTERRUPTED:
        print("stopped", file=sys.stderr)
    sys.exit(code)


def _refuse(problem: str) -> NoReturn:
    _let_first_report()
    print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)
    sys.exit(2)


def _let_first_report() -> None:
    """Wait in all processes except the first, so that only the first reports an error that all processes have."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(FIRST_REPORTS_S)


def _explain(error: Any) -> NoReturn:
    """Print a usage error and the command whose --help explains it, or the list of commands if none was given."""
    if error.message == error.ctx.get_help():
        error.show()
        sys.exit(2)
    _refuse(f"{error.format_message().rstrip('.')}; see {error.ctx.command_path} --help")
