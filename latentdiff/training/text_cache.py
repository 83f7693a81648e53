"""A cache of encoded captions, on disk and in memory, for a frozen text encoder."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from latentdiff.data.latent_cache import fingerprint
from latentdiff.files import atomic_path
from latentdiff.models.conditioning import Conditioning, concatenate
from latentdiff.text.text_conditioner import TextConditioner

BATCH = 64
MOST_BYTES = 2**30


class TextCache:
    """Embeds captions like a frozen `TextConditioner`: known ones from a table on the CPU, others with the encoders.

    captions: the captions of the dataset. The table is stored in the file `cache` and reused for the same captions and
    encoders. With a table, the encoders are moved to the CPU. Without one, because it would exceed 1 GiB or no captions
    are known, they stay on `device`.
    """

    def __init__(self, text: TextConditioner, captions: list[str], cache: Path, device: torch.device) -> None:
        self.text = text.to(device)
        self.table: dict[str, Conditioning] = {}
        if not captions or len(captions) * _bytes(text.encode([""])) > MOST_BYTES:
            return
        digest = hashlib.sha256("\0".join(captions).encode())
        digest.update(fingerprint(text.named_parameters()).encode())
        hidden, pooled = _read(cache, digest.hexdigest()) or _make(text, captions, cache, digest.hexdigest())
        self.table = dict(zip(captions, Conditioning(hidden, pooled).split(), strict=True))
        text.to("cpu")

    @property
    def parked(self) -> list[nn.Module]:
        """The encoders, if they were moved to the CPU."""
        return [self.text] if self.table else []

    def embed(self, captions: list[str]) -> Conditioning:
        """As `TextConditioner.embed`; the result is on the CPU or on the device of the encoders."""
        if not all(caption in self.table for caption in captions):
            return self.text.embed(captions)
        return concatenate([self.table[caption] for caption in captions])


def _bytes(embedding: Conditioning) -> int:
    pooled = 0 if embedding.pooled is None else embedding.pooled.nbytes
    return embedding.hidden.nbytes + pooled


def _make(text: TextConditioner, captions: list[str], cache: Path, key: str) -> tuple[Tensor, Tensor | None]:
    starts = tqdm(range(0, len(captions), BATCH), desc="encoding captions")
    parts = [text.encode(captions[start : start + BATCH]) for start in starts]
    hidden = torch.cat([part.hidden for part in parts]).cpu()
    pooled = [part.pooled for part in parts if part.pooled is not None]
    tensors = {"hidden": hidden} | ({"pooled": torch.cat(pooled).cpu()} if pooled else {})
    cache.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(cache) as path:
        save_file(tensors, path, metadata={"key": key})
    return hidden, tensors.get("pooled")


def _read(cache: Path, key: str) -> tuple[Tensor, Tensor | None] | None:
    try:
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return file.get_tensor("hidden"), file.get_tensor("pooled") if "pooled" in file.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
