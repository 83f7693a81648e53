"""Pictures encoded once: the VAE's mean and deviation of each, on disk and in memory."""

import hashlib
import random
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from latentdiff.data.folder import load_pixels
from latentdiff.data.layouts import Row
from latentdiff.files import atomic_path
from latentdiff.models.vae import AutoencoderKL

BATCH = 32


class LatentImages(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded pictures and their captions by (row, draw); the draw seeds the choice of caption.

    Items: `mean` and `std` [C, h, w] in the VAE's own scale, `caption`.
    """

    def __init__(self, rows: list[Row], moments: Tensor) -> None:
        self.rows = rows
        self.moments = moments

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, draw = item
        mean, std = self.moments[index].float().chunk(2)
        caption = random.Random(f"{index}/{draw}").choice(self.rows[index].captions)
        return {"mean": mean, "std": std, "caption": caption}


def encode_rows(vae: AutoencoderKL, rows: list[Row], resolution: int, cache: Path) -> Tensor:
    """float16 [N, 2C, h, w], mean and deviation; read from `cache` if it was made of just these files by this VAE."""
    key = _key(vae, rows, resolution)
    if (found := _read(cache, key)) is not None:
        return found
    device = next(vae.parameters()).device
    parts = []
    for start in tqdm(range(0, len(rows), BATCH), desc="encoding pictures"):
        pixels = torch.stack([load_pixels(row, resolution) for row in rows[start : start + BATCH]])
        with torch.no_grad():
            posterior = vae.encode(pixels.to(device))
        parts.append(torch.cat([posterior.mean, (0.5 * posterior.logvar).exp()], dim=1).half().cpu())
    moments = torch.cat(parts)
    cache.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(cache) as path:
        save_file({"moments": moments}, path, metadata={"key": key})
    return moments


def _read(cache: Path, key: str) -> Tensor | None:
    try:
        with safe_open(cache, "pt") as file:
            return file.get_tensor("moments") if (file.metadata() or {}).get("key") == key else None
    except (OSError, SafetensorError):
        return None


def _key(vae: AutoencoderKL, rows: list[Row], resolution: int) -> str:
    """A hash of all that the latents depend on: weights, size, and each picture's name and stamp."""
    digest = hashlib.sha256(str(resolution).encode())
    for name, value in vae.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    for row in rows:
        digest.update(f"{row.where}/{row.container.stamp(row.name)}".encode())
    return digest.hexdigest()
