"""Latents on disk: a folder of shards, written while pictures are encoded and memory-mapped for reading."""

import json
import re
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentdiff.errors import CheckpointError
from latentdiff.files import atomic_path, read_json, write_atomically

MANIFEST = "manifest.json"
SHARD = re.compile(r"\d{5,}\.safetensors")
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 300.0  # of work that an interruption may lose


class LatentShards:
    """float16 latents by key. A shard is a safetensors file with latents of one shape, `[N, C, h, w]`, and N keys.

    A shard is complete when the manifest lists it, so that an interrupted run continues after its last shard. Only the
    keys and at most one unwritten shard are in memory. Opening a folder deletes shards of another model and damaged
    ones.

    folder: created with the first shard. model: identifies the encoder.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self.files: list[str] = []
        self._tensors: dict[str, Tensor] = {}
        self._places: dict[str, tuple[str, int]] = {}
        self._pending: dict[str, Tensor] = {}
        self._written = time.monotonic()
        for name in _listed(folder, model):
            self._open(name)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Tensor:
        """float16 [C, h, w], mapped from the file."""
        name, row = self._places[key]
        return self._tensors[name][row]

    def add(self, keys: Sequence[str], latents: Tensor) -> None:
        """Append latents [N, C, h, w] of any floating-point dtype. They can be read after `flush`."""
        if self._pending and next(iter(self._pending.values())).shape != latents.shape[1:]:
            self.flush()
        self._pending |= zip(keys, latents.half().cpu().clone(), strict=True)
        size = sum(latent.nbytes for latent in self._pending.values())
        if size >= SHARD_BYTES or time.monotonic() - self._written >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the latents added since the last shard."""
        if not self._pending:
            return
        name = f"{1 + max((int(Path(file).stem) for file in self.files), default=-1):05}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / name) as path:
            latents = torch.stack(list(self._pending.values()))
            save_file({"latents": latents}, path, metadata={"keys": json.dumps(list(self._pending))})
        self._pending.clear()
        self._written = time.monotonic()
        self._open(name)
        self._write_manifest()

    def keep(self, keys: Collection[str]) -> None:
        """Delete the shards that contain none of these keys."""
        needed = {self._places[key][0] for key in keys if key in self._places}
        for name in [name for name in self.files if name not in needed]:
            self.files.remove(name)
            del self._tensors[name]
            self._write_manifest()
            (self.folder / name).unlink(missing_ok=True)
        self._places = {key: place for key, place in self._places.items() if place[0] in needed}

    def _open(self, name: str) -> None:
        with suppress(OSError, SafetensorError, ValueError, KeyError):
            with safe_open(self.folder / name, "pt") as file:
                keys, latents = json.loads(file.metadata()["keys"]), file.get_tensor("latents")
            self._places |= {key: (name, row) for row, key in zip(range(len(latents)), keys, strict=True)}
            self._tensors[name] = latents
            self.files.append(name)

    def _write_manifest(self) -> None:
        write_atomically(self.folder / MANIFEST, json.dumps({"model": self.model, "shards": self.files}))


def _listed(folder: Path, model: str) -> list[str]:
    """The shards that the folder's manifest lists; those of another model are deleted."""
    with suppress(CheckpointError):
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        if manifest.get("model") == model and isinstance(names := manifest.get("shards"), list):
            return [name for name in names if isinstance(name, str) and SHARD.fullmatch(name)]
    for path in folder.glob("*.safetensors"):
        if SHARD.fullmatch(path.name):
            path.unlink()
    return []
