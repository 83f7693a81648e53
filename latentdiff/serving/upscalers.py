"""The ESRGAN networks of a server, by name; each is loaded at first use and kept."""

import threading
from pathlib import Path

import torch

from latentdiff.errors import InputError, did_you_mean, shorten
from latentdiff.hires import LATENT, PIXEL
from latentdiff.images.upscaling import load_upscaler
from latentdiff.models.esrgan import RRDBNet
from latentdiff.serving.errors import NotFoundError


class UpscalerStore:
    """Networks by name. paths: their files. Raises InputError for a reserved name."""

    def __init__(self, paths: dict[str, Path] | None = None, allow_pickle: bool = False) -> None:
        self.paths, self.allow_pickle = paths or {}, allow_pickle
        if taken := {PIXEL, LATENT, "none", "nearest"} & {name.lower() for name in self.paths}:
            raise InputError(f"an upscaler cannot be named {min(taken)}; write NAME=PATH to rename it")
        self._networks: dict[Path, RRDBNet] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> str | Path:
        """Return `lanczos` and `latent` unchanged, and the file of any other name. Raises NotFoundError."""
        if name in (PIXEL, LATENT):
            return name
        if name not in self.paths:
            known = (PIXEL, LATENT, *self.paths)
            raise NotFoundError(f"upscaler={shorten(name)} is unknown; {did_you_mean(name, known)}", "upscaler")
        return self.paths[name]

    def get(self, upscaler: str | Path, device: torch.device) -> RRDBNet | None:
        """Load the network that `find` returned; None for interpolation. Raises CheckpointError."""
        if isinstance(upscaler, str):
            return None
        with self._lock:
            if upscaler not in self._networks:
                self._networks[upscaler] = load_upscaler(upscaler, device, self.allow_pickle)
            return self._networks[upscaler]
