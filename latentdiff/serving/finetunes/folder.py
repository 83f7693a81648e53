"""The folder of one fine-tune, and the folder that contains all of them."""

import asyncio
import json
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentdiff.checkpoints.lora_reader import FILE
from latentdiff.files import atomic_path, finished_files, write_atomically
from latentdiff.serving.errors import LimitError, NotFoundError, ServingError

NAME = re.compile(r"[^\W_][\w-]{0,39}")
MAX_FINETUNES = 200


class ConflictError(ServingError):
    """A request that conflicts with the state of a fine-tune."""

    status = 409
    code = "conflict"


@dataclass(frozen=True)
class FineTune:
    """One fine-tune. Its pictures and captions are copies, so that the original files never change."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def pictures(self) -> Path:
        """Copies of the pictures, and their captions in `metadata.jsonl`."""
        return self.folder / "pictures"

    @property
    def thumbnails(self) -> Path:
        return self.folder / "thumbnails"

    @property
    def output(self) -> Path:
        """The `--output` of `latentdiff finetune`."""
        return self.folder / "run"

    @property
    def log(self) -> Path:
        """The output of the process."""
        return self.folder / "log.txt"

    @property
    def loras(self) -> list[Path]:
        """The LoRA files that were made available to requests, oldest first."""
        return sorted(finished_files(self.folder, "loras/*.safetensors"), key=lambda path: path.stat().st_mtime)

    @property
    def steps_saved(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        steps = [int(path.name[5:]) for path in self.output.glob("checkpoints/step-*[0-9]")]
        return max(steps, default=0)

    @property
    def started(self) -> bool:
        """Whether there is a checkpoint, after which the pictures and settings are fixed."""
        return self.steps_saved > 0

    def read(self, name: str) -> dict[str, Any]:
        """One of the JSON files of the folder; empty if it is missing."""
        try:
            value = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def write(self, name: str, value: dict[str, Any]) -> None:
        write_atomically(self.folder / name, json.dumps(value, ensure_ascii=False))

    def take_lora(self) -> Path:
        """Copy the newest LoRA to a file named after its step, so that later steps do not replace it.

        Raises ConflictError if no LoRA has been saved.
        """
        source = self.output / "model" / FILE
        path = self.folder / "loras" / f"{self.name}-{self.steps_saved}.safetensors"
        path.parent.mkdir(exist_ok=True)
        try:
            with atomic_path(path) as partial:
                shutil.copyfile(source, partial)
        except FileNotFoundError as error:
            raise ConflictError(f"{self.name} has not saved a LoRA yet; wait for its first checkpoint") from error
        return path


@dataclass(frozen=True)
class FineTunes:
    """All fine-tunes of a server.

    source: pictures can be copied from its subfolders. folder: contains the fine-tunes. changing: held by a request
    that changes files. checking: held during a data check; only one runs at a time.
    """

    source: Path
    folder: Path
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def all(self) -> list[FineTune]:
        """Newest first."""
        found = [FineTune(path.parent) for path in self.folder.glob("*/about.json")]
        return sorted(found, key=lambda one: -float(one.read("about.json").get("created", 0)))

    def find(self, name: str) -> FineTune:
        """The fine-tune with this name. Raises NotFoundError."""
        found = FineTune(self.folder / name)
        if not NAME.fullmatch(name) or not (found.folder / "about.json").is_file():
            raise NotFoundError(f"fine-tune {name[:80]!r} does not exist; it may have been deleted", "name")
        return found

    def create(self, name: str) -> FineTune:
        """A new fine-tune without pictures. Raises ServingError for an invalid or existing name."""
        if not NAME.fullmatch(name):
            raise ServingError(
                f"name={name[:80]!r} must be 1 to 40 letters, digits, - and _, the first a letter or digit", "name"
            )
        if len(self.all()) >= MAX_FINETUNES:
            raise LimitError(f"there are {MAX_FINETUNES} fine-tunes; delete one first", "name")
        made = FineTune(self.folder / name)
        try:
            made.pictures.mkdir(parents=True)
        except FileExistsError as error:
            raise ConflictError(f"{name} exists; choose another name", "name") from error
        made.thumbnails.mkdir()
        made.write("about.json", {"created": time.time()})
        return made

    def folders(self) -> list[str]:
        """Subfolders of `source` that contain files, up to four levels deep, as relative paths."""
        found, level = [], [self.source]
        for _ in range(4):
            level = [path for above in level for path in sorted(above.iterdir()) if self._usable(path)][:1000]
            found += [
                path.relative_to(self.source).as_posix() for path in level if any(map(Path.is_file, path.iterdir()))
            ]
        return sorted(found)

    def _usable(self, path: Path) -> bool:
        readable = not path.name.startswith(".") and path.is_dir() and os.access(path, os.R_OK | os.X_OK)
        return readable and self.contains(path) and path.resolve() != self.folder.resolve()

    def contains(self, path: Path) -> bool:
        """Whether a path is below `source` after links are resolved."""
        return path.resolve().is_relative_to(self.source.resolve())

    def source_folder(self, path: str) -> Path:
        """The folder of pictures at a relative path. Raises ServingError if it is not below `source`."""
        found = self.source / path
        try:
            usable = self.contains(found) and found.is_dir()
        except (OSError, ValueError):  # too long, or with a null byte
            usable = False
        if not usable:
            raise NotFoundError(f"folder={path[:200]!r} is not a folder below the server's --train folder", "folder")
        return found
