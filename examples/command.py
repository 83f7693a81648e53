"""Exit codes of the commands of the examples."""

import sys
from collections.abc import Callable
from typing import Any

from latentdiff.errors import LatentDiffError


def exit_code(work: Callable[..., object], *arguments: Any) -> int:
    """0 after `work(*arguments)`; for errors of the user or the disk, prints one line and returns 2."""
    try:
        work(*arguments)
    except LatentDiffError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error}; check the path, its permissions and the free disk space"
    else:
        return 0
    print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)
    return 2
