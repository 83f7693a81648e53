"""A cache of torch.compile's output between processes: one archive, which is read completely or not at all.

A process compiles in its own temporary folder and copies it into the user's cache, so that other processes never see a
partially written library, even if this one is killed.
"""

import atexit
import os
import re
import shutil
import warnings
import zipfile
import zlib
from pathlib import Path
from tempfile import mkdtemp

import torch

from latentdiff.files import atomic_path
from latentdiff.runtime.cpu_features import processor
from latentdiff.runtime.native import cache_folder

FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # the folder that torch.compile and Triton read and write


_OPENED: dict[Path, "CompileCache"] = {}


class CompileCache:
    """The archive for a device, unpacked into a folder that torch.compile uses until this process ends."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.work = archive, Path(mkdtemp(prefix="latentdiff-"))
        atexit.register(shutil.rmtree, self.work, ignore_errors=True)
        try:
            self._unpack()
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, EOFError) as error:
            warnings.warn(f"{archive} is damaged ({error}) and ignored; it will be rewritten", stacklevel=2)
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir()
        self.kept = self._files()

    def _unpack(self) -> None:
        if self.archive.exists():
            with zipfile.ZipFile(self.archive) as packed:
                packed.extractall(self.work)  # verifies the checksum of each file
            return
        version = torch.__version__.partition("+")[0]
        others = self.archive.parent.glob(f"torch-*{self.archive.name.removeprefix(f'torch-{torch.__version__}')}")
        for other in sorted(others):
            warnings.warn(
                f"{other} was written by another torch version than {version} and is ignored; remove it", stacklevel=3
            )

    def save(self) -> None:
        """Write the archive if anything was added; warn in one line if it cannot be written."""
        if (found := self._files()) == self.kept:
            return
        try:
            self.archive.parent.mkdir(parents=True, exist_ok=True)
            with (
                atomic_path(self.archive) as partial,
                zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, True, 1) as out,
            ):
                for name in sorted(found):
                    out.write(self.work / name, name)
        except OSError as error:
            warnings.warn(
                f"{self.archive} cannot be written ({error.strerror}); the next start compiles again", stacklevel=2
            )
        self.kept = found

    def _files(self) -> set[str]:
        paths = (path for path in self.work.rglob("*") if path.is_file() and path.suffix not in (".lock", ".tmp"))
        return {path.relative_to(self.work).as_posix() for path in paths}


def open_cache(device: torch.device) -> CompileCache | None:
    """Use the cache for a kind of device from now on; None if the user has set TORCHINDUCTOR_CACHE_DIR."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    own = (str(cache.work) for cache in _OPENED.values())
    if os.environ.get(FOLDER) not in (None, default_cache_dir(), *own):  # torch sets it too, to its default
        return None
    path = archive_path(device)
    if path not in _OPENED:
        _OPENED[path] = CompileCache(path)
    os.environ[FOLDER] = str(_OPENED[path].work)
    return _OPENED[path]


def archive_path(device: torch.device) -> Path:
    """`compiled/torch-<version>-<device>.zip` in our folder of the user's cache."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}-{processor()}"
    return cache_folder() / "compiled" / f"torch-{torch.__version__}-{re.sub('[^A-Za-z0-9]+', '-', name)}.zip"
