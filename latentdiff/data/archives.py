"""Containers of pictures: folders, zip files and tar files, read in place."""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from latentdiff.data.zip_members import ERRORS, MemberNames, ZipMembers
from latentdiff.errors import InputError

Entry = TypeVar("Entry")

PICTURES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".apng", ".bmp", ".tif", ".tiff", ".avif",
}  # fmt: skip
ARCHIVES = (".zip", ".tar")
MAX_FILE = 256 * 1024 * 1024


def _unknown(name: str) -> int:
    return 0


@dataclass(frozen=True)
class Container:
    """A set of files. `read(name)` returns the bytes of one.

    source: the path or URL that it was opened from. names: sorted relative paths with `/`. size(name): bytes of a
    file, 0 if unknown. garbled: names with non-ASCII letters whose encoding the archive does not state.
    """

    source: str
    names: tuple[str, ...]
    read: Callable[[str], bytes] = field(repr=False)
    size: Callable[[str], int] = field(repr=False, default=_unknown)
    garbled: frozenset[str] = frozenset()

    @property
    def pictures(self) -> list[str]:
        return [name for name in self.names if is_picture(name)]

    def where(self, name: str) -> str:
        """The full name of a file, for messages."""
        return f"{self.source}/{name}"


def is_picture(name: str) -> bool:
    """Whether the suffix is that of an image format."""
    return PurePosixPath(name).suffix.lower() in PICTURES


def open_container(path: Path, source: str = "") -> Container:
    """Open a folder, `.zip` or uncompressed `.tar`; `source` replaces its path in messages. Raises InputError."""
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
    except InputError:
        raise
    except (*ERRORS, tarfile.TarError) as error:
        raise InputError(f"{source} is damaged ({error}); copy or download it again") from error
    raise InputError(f"{source} is not a folder, .zip or .tar; unpack it into a folder first")


def open_folder_of_archives(folder: Container) -> Container:
    """A folder whose pictures are in `.zip` or `.tar` files: the joined archives and the other files of the folder."""
    loose = tuple(name for name in folder.names if not name.lower().endswith(ARCHIVES))
    archives = [name for name in folder.names if name not in set(loose)]
    joined = join([open_container(Path(folder.source) / name) for name in archives], folder.source)
    others = frozenset(loose)

    def read(name: str) -> bytes:
        return folder.read(name) if name in others else joined.read(name)

    def size(name: str) -> int:
        return folder.size(name) if name in others else joined.size(name)

    return Container(folder.source, tuple(sorted((*loose, *joined.names))), read, size, joined.garbled)


def join(containers: list[Container], root: str | None = None) -> Container:
    """Combine containers: `cat.png` in `000.tar` becomes `000.tar/cat.png`.

    root: the common prefix of their sources, computed if not given. Raises InputError for a container without
    pictures and for one that is given twice.
    """
    if root is None:
        # By characters, since URLs are not paths: os.path.commonpath would drop a slash after https:/.
        root = os.path.commonprefix([part.source for part in containers]).rpartition("/")[0]  # noqa: RUF071
    places: dict[str, tuple[Container, str]] = {}
    for part in containers:
        if not part.pictures:
            raise InputError(f"{part.source} contains no pictures; omit it or create it again")
        shard = part.source.removeprefix(f"{root}/")
        if f"{shard}/{part.names[0]}" in places:
            raise InputError(f"{part.source} is given twice; give each shard once")
        places |= {f"{shard}/{name}": (part, name) for name in part.names}

    def read(name: str) -> bytes:
        part, inside = places[name]
        return part.read(inside)

    def size(name: str) -> int:
        part, inside = places[name]
        return part.size(inside)

    garbled = frozenset(name for name, (part, inside) in places.items() if inside in part.garbled)
    return Container(root or ".", tuple(sorted(places)), read, size, garbled)


def _folder(root: Path) -> Container:
    names = tuple(sorted(_walk(root, "", frozenset())))
    for name in names:
        if not is_text(name):
            raise InputError(f"{str(root / name)!a}: the file's name is not UTF-8; rename it")

    def read(name: str) -> bytes:
        if (bytes_of_file := size(name)) > MAX_FILE:
            raise InputError(f"{root / name} has {bytes_of_file} bytes, more than {MAX_FILE}; remove it")
        with _named(root / name):
            return (root / name).read_bytes()

    def size(name: str) -> int:
        with _named(root / name):
            return (root / name).stat().st_size

    return Container(str(root), names, read, size)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Convert OSError to InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); repair or remove it") from error


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Names of the files in a folder and its subfolders. Symbolic links are followed, except to a parent folder."""
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        entries = [] if here in above else [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        folders = [entry.name for entry in entries if entry.is_dir()]
        files = [entry.name for entry in entries if entry.is_file() or (entry.is_symlink() and not entry.is_dir())]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); change its permissions or remove it") from error
    yield from (f"{prefix}{name}" for name in files)  # with dangling links, which are reported when they are read
    for name in folders:
        yield from _walk(folder / name, f"{prefix}{name}/", above | {here})


def _zip(path: Path, source: str) -> Container:
    members = ZipMembers(path, source)
    names = MemberNames()
    entries = _entries(source, ((names(info), info.file_size, info) for info in members.infos))

    def read(name: str) -> bytes:
        return members.read(entries[name])

    return Container(
        source, tuple(sorted(entries)), read, lambda name: entries[name].file_size, frozenset(names.garbled)
    )


def _tar(path: Path, source: str) -> Container:
    """Members are read at their offsets, so that worker processes need not scan the archive again."""
    garbled: set[str] = set()
    with tarfile.open(path, "r:") as archive:
        files = (member for member in archive if member.isfile())
        members = ((_tar_name(file.name, garbled), file.size, (file.offset_data, file.size)) for file in files)
        entries = _entries(source, members)
        end = archive.offset

    def read_at(offset: int, size: int) -> bytes:
        with _named(path), path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def size(name: str) -> int:
        return entries[name][1]

    if read_at(end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is truncated")
    return Container(source, tuple(sorted(entries)), lambda name: read_at(*entries[name]), size, frozenset(garbled))


def _tar_name(name: str, garbled: set[str]) -> str:
    """A name that can be printed; one that is not UTF-8 is added to `garbled`."""
    if is_text(name):
        return name
    readable = name.encode("utf-8", "surrogateescape").decode("cp437")
    garbled.add(readable)
    return readable


def _entries(source: str, members: Iterable[tuple[str, int, Entry]]) -> dict[str, Entry]:
    """Members (name, size, entry) by name, without hidden ones and paths that lead outside. Raises InputError."""
    entries: dict[str, Entry] = {}
    for raw, size, entry in members:
        name = PurePosixPath(raw).as_posix()
        if not _is_inside_and_visible(name):
            continue
        if size > MAX_FILE:
            raise InputError(f"{source}: {name} would unpack to {size} bytes, more than {MAX_FILE}; remove it")
        if name in entries:
            raise InputError(f"{source} contains {name} twice; pack it again with each file once")
        entries[name] = entry
    return entries


def _is_inside_and_visible(name: str) -> bool:
    """False for absolute paths, `..`, and hidden files of macOS and version control."""
    parts = PurePosixPath(name).parts
    return not name.startswith("/") and not any(p == "__MACOSX" or p.startswith(".") for p in parts)


def is_text(value: str) -> bool:
    """Whether a string can be encoded as UTF-8; lone surrogates, from a file name or a JSON escape, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in value)
