"""Files that `url` responses refer to: kept for an hour in a folder of limited size, with unguessable names."""

import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentdiff.files import atomic_path
from latentdiff.serving.errors import InternalError, NotFoundError

NAME = re.compile(r"[A-Za-z0-9_-]{20,40}\.(png|jpeg|webp)")


class ResultFiles:
    """A folder of images, created at first use. seconds: how long a file is kept. limit: bytes of all files.
    uncollected: names of the files that no client has fetched. expected: the number of accepted requests whose files
    are not written yet.
    """

    def __init__(self, seconds: float = 3600.0, limit: int = 2**30) -> None:
        self.seconds, self.limit = seconds, limit
        self.uncollected: set[str] = set()
        self.expected = 0
        self._folder: Path | None = None

    @contextmanager
    def expect(self) -> Iterator[None]:
        """While a request whose files will be written is in progress."""
        self.expected += 1
        try:
            yield
        finally:
            self.expected -= 1

    def write(self, data: bytes, extension: str) -> str:
        """Store an image and return its name. Raises InternalError if the disk is full."""
        try:
            self._folder = self._folder or Path(tempfile.mkdtemp(prefix="latentdiff-"))
            self._remove_old(len(data))
            name = f"{secrets.token_urlsafe(24)}.{extension}"
            with atomic_path(self._folder / name) as partial:
                partial.write_bytes(data)
        except OSError as error:
            raise InternalError(
                f"the image file cannot be written ({error.strerror}); use response_format=b64_json"
            ) from error
        self.uncollected.add(name)
        return name

    def find(self, name: str) -> Path:
        """The path of a stored image. Raises NotFoundError, also for names that the server did not create."""
        if self._folder is None or not NAME.fullmatch(name) or not (path := self._folder / name).is_file():
            raise NotFoundError("no such file; image files are kept for an hour")
        self.uncollected.discard(name)
        return path

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _remove_old(self, needed: int) -> None:
        assert self._folder is not None
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.iterdir())
        total = sum(size for _, size, _ in files) + needed
        for modified, size, path in files:
            if total > self.limit or time.time() - modified > self.seconds:
                path.unlink(missing_ok=True)
                self.uncollected.discard(path.name)
                total -= size
