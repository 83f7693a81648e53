"""What holds pictures: a folder, a zip or a tar. Each lists names and reads one; nothing is unpacked or changed."""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from latentdiff.errors import InputError

Entry = TypeVar("Entry")

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".apng", ".bmp", ".tif", ".tiff", ".avif"}
MAX_FILE = 256 * 1024 * 1024
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError)


@dataclass(frozen=True)
class Container:
    """Files by name (relative, with `/`), sorted. `read` gives the bytes of one.

    source: the path or address it was opened from.
    """

    source: str
    names: tuple[str, ...]
    read: Callable[[str], bytes] = field(repr=False)

    @property
    def pictures(self) -> list[str]:
        return [name for name in self.names if PurePosixPath(name).suffix.lower() in PICTURES]

    def where(self, name: str) -> str:
        """The full name of a file, for messages."""
        return f"{self.source}/{name}"


def open_container(path: Path, source: str = "") -> Container:
    """Open a folder, `.zip` or uncompressed `.tar`, called `source` if that is given. Raises InputError for others."""
    source = source or str(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(f"{source} does not exist; give a folder of pictures, a .zip or a .tar")
    try:
        if path.suffix.lower() == ".zip":
            return _zip(path, source)
        if path.suffix.lower() == ".tar":
            return _tar(path, source)
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{source} is damaged ({error}); copy or download it again") from error
    raise InputError(f"{source} is no folder, .zip or .tar; unpack it to a folder first")


def join(containers: list[Container]) -> Container:
    """Containers of pictures as one: `cat.png` in `000.tar` becomes `000.tar/cat.png`. Raises InputError for twins."""
    # By characters, since addresses are no paths: the common folder of those would lose a slash after https:/.
    root = os.path.commonprefix([part.source for part in containers]).rpartition("/")[0]  # noqa: RUF071
    places: dict[str, tuple[Container, str]] = {}
    for part in containers:
        if not part.pictures:
            raise InputError(f"{part.source} holds no pictures; leave it out or make it again")
        shard = part.source.removeprefix(f"{root}/")
        if f"{shard}/{part.names[0]}" in places:
            raise InputError(f"{part.source} is named twice; name each once")
        places |= {f"{shard}/{name}": (part, name) for name in part.names}

    def read(name: str) -> bytes:
        part, inside = places[name]
        return part.read(inside)

    return Container(root or ".", tuple(sorted(places)), read)


def _folder(root: Path) -> Container:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    for name in found:
        if not is_text(name):
            raise InputError(f"{str(root / name)!a}: the file's name is not UTF-8; rename it")
    return Container(str(root), tuple(sorted(found)), lambda name: (root / name).read_bytes())


def _zip(path: Path, source: str) -> Container:
    with zipfile.ZipFile(path) as archive:
        members = ((info.filename, info.file_size, info) for info in archive.infolist() if not info.is_dir())
        entries = _entries(source, members)

    def read(name: str) -> bytes:
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.read(entries[name])
        except ZIP_ERRORS as error:
            reason = "it has a password" if entries[name].flag_bits & 1 else error
            raise InputError(f"{source}/{name} cannot be unpacked ({reason}); pack it again") from error

    return Container(source, tuple(sorted(entries)), read)


def _tar(path: Path, source: str) -> Container:
    """Members are read at their offset, so that every process can, without going through the archive again."""
    with tarfile.open(path, "r:") as archive:
        files = (member for member in archive if member.isfile())
        entries = _entries(source, ((file.name, file.size, (file.offset_data, file.size)) for file in files))
        end = archive.offset

    def read_at(offset: int, size: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    if read_at(end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is cut short")
    return Container(source, tuple(sorted(entries)), lambda name: read_at(*entries[name]))


def _entries(source: str, members: Iterable[tuple[str, int, Entry]]) -> dict[str, Entry]:
    """By name, of (name, size, entry), those that stay inside and are no system's leftovers. Raises InputError."""
    entries: dict[str, Entry] = {}
    for raw, size, entry in members:
        name = PurePosixPath(raw).as_posix()
        if not _plain(name):
            continue
        if size > MAX_FILE:
            raise InputError(f"{source}: {name} would unpack to {size} bytes, over {MAX_FILE}; take it out")
        if name in entries:
            raise InputError(f"{source} holds {name} twice; pack it again, each file once")
        entries[name] = entry
    return entries


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: not where a name or a JSON escape holds half a character."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _plain(name: str) -> bool:
    """Names that stay inside, and are not what macOS or a version control leaves behind."""
    parts = PurePosixPath(name).parts
    return not name.startswith("/") and not any(p == "__MACOSX" or p.startswith(".") for p in parts)
