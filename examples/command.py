"""How a command of the examples ends."""

import sys
from collections.abc import Callable
from typing import Any

from latentdiff.errors import LatentDiffError


def exit_code(work: Callable[..., object], *arguments: Any) -> int:
    """0 after `work(*arguments)`; a mistake of the user's, or of the disk, is one line and 2."""
    try:
        work(*arguments)
    except LatentDiffError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error}; check the path, its rights and the room on the disk"
    else:
        return 0
    print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)
    return 2
