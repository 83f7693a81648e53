"""The command line: one thin function a verb."""

import sys
import warnings
from typing import Any, NoReturn

INTERRUPTED = 130  # what Typer makes of Ctrl-C


def main() -> None:
    """Run the command line; a mistake of the user's is one line and exit code 2."""
    from typer import BadParameter

    from latentdiff.cli.app import app
    from latentdiff.errors import LatentDiffError, is_out_of_memory

    for word in sys.argv[1:]:  # no tokenizer, no recipe and no config takes what was not UTF-8 in the shell
        if word.encode(errors="ignore").decode() != word:
            _refuse(f"{word!a} is not UTF-8 text; type it in a terminal that speaks UTF-8")
    usage_error: Any = BadParameter.__base__  # Click's, which Typer takes from one package or another
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        code = app(standalone_mode=False)
    except LatentDiffError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error}; check the path, its rights and the room on the disk")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _refuse(f"out of memory ({str(error)[:120]}); ask for smaller pictures, or fewer at once")
    except usage_error as error:
        _explain(error)
    if code == INTERRUPTED:
        print("stopped", file=sys.stderr)
    sys.exit(code)


def _refuse(problem: str) -> NoReturn:
    print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)
    sys.exit(2)


def _explain(error: Any) -> NoReturn:
    """What was typed wrongly, and where the options are explained; the verbs where none was typed."""
    if error.message == error.ctx.get_help():
        error.show()
        sys.exit(2)
    _refuse(f"{error.format_message().rstrip('.')}; see {error.ctx.command_path} --help")
