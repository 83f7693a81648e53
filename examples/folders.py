"""Atomic creation of folders."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentdiff.errors import InputError


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder next to `out`: renamed to it on success, removed after an error."""
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; choose another, or delete it first")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out} cannot be created ({error.strerror}); choose another folder") from None
    try:
        yield partial
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
