"""Members of a zip file: read through one handle per thread, and named in the encoding that the archive states."""

import os
import struct
import threading
import zipfile
import zlib
from pathlib import Path

from latentdiff.errors import InputError

ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, OSError, EOFError, ValueError)
IS_UTF8 = 0x800  # general purpose bit 11 (APPNOTE.TXT 4.4.4)
IS_ENCRYPTED = 0x1
UNICODE_PATH = 0x7075  # extra field (APPNOTE.TXT 4.6.9)


class ZipMembers:
    """The files of a zip archive. Each thread and each forked process reads the archive's directory once."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self._local = threading.local()
        self.infos = [info for info in self._archive().infolist() if not info.is_dir()]

    def read(self, info: zipfile.ZipInfo) -> bytes:
        """The bytes of a member. Raises InputError if they cannot be unpacked."""
        try:
            return self._archive().read(info)
        except ERRORS as error:
            reason = "it is encrypted" if info.flag_bits & IS_ENCRYPTED else error
            raise InputError(f"{self.source}/{info.filename} cannot be unpacked ({reason}); pack it again") from error

    def _archive(self) -> zipfile.ZipFile:
        if getattr(self._local, "process", None) != os.getpid():  # a forked process shares the position in the file
            self._local.archive, self._local.process = zipfile.ZipFile(self.path), os.getpid()
        archive: zipfile.ZipFile = self._local.archive
        return archive


class MemberNames:
    """Decodes names of members; `garbled` collects those whose encoding is unknown.

    A name is UTF-8 if a flag or the Unicode path field says so, or if its bytes are valid UTF-8, since many programs
    omit the flag. Other names are decoded with code page 437, the standard's default, which is seldom correct.
    """

    def __init__(self) -> None:
        self.garbled: set[str] = set()

    def __call__(self, info: zipfile.ZipInfo) -> str:
        name = info.filename
        if not info.flag_bits & IS_UTF8 and not name.isascii():
            stored = info.orig_filename.encode("cp437")  # which is how zipfile decoded it
            try:
                name = (_unicode_path(info.extra, stored) or stored).decode("utf-8")
            except UnicodeDecodeError:
                self.garbled.add(name)
        return name.replace("\\", "/") if "/" not in name else name  # .NET before 4.6.1 wrote backslashes


def _unicode_path(extra: bytes, stored: bytes) -> bytes | None:
    """The name in the Unicode path field: version 1, the CRC of the name it replaces, UTF-8."""
    while len(extra) >= 4:
        kind, length = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        value, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == UNICODE_PATH and value[:5] == b"\x01" + zlib.crc32(stored).to_bytes(4, "little"):
            return value[5:]
    return None
