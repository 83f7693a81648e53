"""Atomic file writes, checks of output paths, and JSON files whose errors name the file."""

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentdiff.errors import CheckpointError, InputError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder: flushed to disk and renamed to `path` on success, removed on an error."""
    partial = partial_path(path)
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def partial_path(path: Path) -> Path:
    """A unique temporary path in the same folder as `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial{path.suffix}")


def finished_files(folder: Path, pattern: str) -> list[Path]:
    """The matching files, sorted by name, without those that `atomic_path` is still writing."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk. Windows can only flush writable files."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable_parent(path: Path) -> None:
    """Raise InputError unless a file with this name can be created in its folder."""
    try:
        partial_path(path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); use a shorter name or another folder"
        ) from error
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; create it first, or use another")
    if path.is_dir():
        raise InputError(f"{path} is a folder; pass a file name")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: the folder {folder} is not writable; change its permissions, or use another")


def read_json(path: Path, otherwise: str = "download or save the model again") -> dict[str, Any]:
    """Read a model's JSON file. Raises CheckpointError, whose message ends with `otherwise`, the next action."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); {otherwise}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({str(error)[:200]}); {otherwise}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply for a model's JSON file; {otherwise}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} contains {type(value).__name__} instead of keys and values; {otherwise}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
