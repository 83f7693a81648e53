"""What holds pictures: a folder, a zip or a tar. Each lists names and reads one; nothing is unpacked or changed."""

import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from latentdiff.errors import InputError

MAX_FILE = 256 * 1024 * 1024


@dataclass(frozen=True)
class Container:
    """Files by name (relative, with `/`), sorted. `read` gives the bytes of one; `stamp` changes when they may have."""

    path: Path
    names: tuple[str, ...]
    read: Callable[[str], bytes] = field(repr=False)
    stamp: Callable[[str], str] = field(repr=False)


def open_container(path: Path) -> Container:
    """Open a folder, `.zip` or uncompressed `.tar`. Raises InputError for anything else."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a folder of pictures, a .zip or a .tar")
    try:
        if path.suffix == ".zip":
            return _zip(path)
        if path.suffix == ".tar":
            return _tar(path)
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); copy or download it again") from error
    raise InputError(f"{path} is no folder, .zip or .tar; unpack it to a folder first")


def _folder(root: Path) -> Container:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]

    def stamp(name: str) -> str:
        stat = (root / name).stat()
        return f"{stat.st_size}/{stat.st_mtime_ns}"

    return Container(root, tuple(sorted(found)), lambda name: (root / name).read_bytes(), stamp)


def _zip(path: Path) -> Container:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist() if not info.is_dir() and _plain(info.filename)}
    for info in entries.values():
        _check_size(path, info.filename, info.file_size)

    def read(name: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)

    return Container(path, tuple(sorted(entries)), read, lambda name: f"{entries[name].CRC}/{entries[name].file_size}")


def _tar(path: Path) -> Container:
    """Members are read at their offset, so that every process can, without going through the archive again."""
    with tarfile.open(path, "r:") as archive:
        entries = {member.name: member for member in archive if member.isfile() and _plain(member.name)}
    for member in entries.values():
        _check_size(path, member.name, member.size)
    whole = path.stat().st_mtime_ns

    def read(name: str) -> bytes:
        member = entries[name]
        with path.open("rb") as file:
            return _read_at(file, member.offset_data, member.size)

    return Container(path, tuple(sorted(entries)), read, lambda name: f"{entries[name].offset_data}/{whole}")


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _plain(name: str) -> bool:
    """Names that stay inside, and are not what macOS or a version control leaves behind."""
    parts = PurePosixPath(name).parts
    return not name.startswith("/") and not any(p == "__MACOSX" or p.startswith(".") for p in parts)


def _check_size(path: Path, name: str, size: int) -> None:
    if size > MAX_FILE:
        raise InputError(f"{path}: {name} would unpack to {size} bytes, over {MAX_FILE}; take it out")
