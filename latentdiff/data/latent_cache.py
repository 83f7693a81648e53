"""Pictures encoded once: the VAE's mean and deviation of each cut of each, on disk and in memory."""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from latentdiff.config.train import DataConfig
from latentdiff.data.buckets import Fitting, View, views
from latentdiff.data.captions import choose_caption
from latentdiff.data.layouts import Row
from latentdiff.files import atomic_path
from latentdiff.images.decoding import decode, measure, to_pixels
from latentdiff.models.vae import VAE

PIXELS = 2**19  # at once through the encoder: 32 pictures of 128 x 128, one of 1024 x 1024


@dataclass(frozen=True)
class Encoded:
    """A picture's cuts as float16 [2C, h, w], mean over deviation; the second half are the mirrored ones, if any."""

    cuts: list[Tensor]


class LatentImages(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded pictures and their captions by (row, draw); the draw seeds the choice of cut and caption.

    Items: `mean` and `std` [C, h, w] in the VAE's own scale, `caption`, `weight`, `draw`.
    """

    def __init__(self, rows: list[Row], encoded: list[Encoded], config: DataConfig) -> None:
        self.rows, self.encoded, self.config = rows, encoded, config
        shapes = sorted({e.cuts[0].shape for e in encoded})
        self.buckets = [shapes.index(e.cuts[0].shape) for e in encoded]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, draw = item
        rng = random.Random(f"{index}/{draw}")
        cuts = self.encoded[index].cuts
        if self.config.flip:
            half = len(cuts) // 2
            cuts = cuts[half:] if rng.random() < self.config.flip else cuts[:half]
        mean, std = rng.choice(cuts).float().chunk(2)
        row = self.rows[index]
        caption, weight = choose_caption(row, self.config, rng), torch.tensor(row.weight)
        return {"mean": mean, "std": std, "caption": caption, "weight": weight, "draw": draw}


def encode_rows(
    vae: VAE, rows: list[Row], config: DataConfig, cache: Path, multiple: int | None = None
) -> list[Encoded]:
    """Every row's cuts through the encoder; those that `cache` holds from this VAE and these bytes are read from it.

    multiple: what their sides are multiples of, the VAE's factor if not given.
    """
    fitting = Fitting.of(config, multiple or vae.config.downscale)
    digests = [hashlib.sha256(row.read()).hexdigest() for row in rows]
    chosen = [_views(row, digest, config, fitting) for row, digest in zip(rows, digests, strict=True)]
    wanted = {
        _key(digest, view): (row, view)
        for row, digest, cuts in zip(rows, digests, chosen, strict=True)
        for view in cuts
    }
    model = _fingerprint(vae)
    found = {key: value for key, value in _read(cache, model).items() if key in wanted}
    missing = {key: value for key, value in wanted.items() if key not in found}
    if missing:
        found |= _encode(vae, missing)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(cache) as path:
            save_file(found, path, metadata={"model": model})
    return [Encoded([found[_key(digest, view)] for view in cuts]) for digest, cuts in zip(digests, chosen, strict=True)]


def load_view(row: Row, view: View) -> Tensor:
    """float32 [3, H, W] in [-1, 1]: the cut that `view` describes."""
    image = decode(row.read(), row.where, view.background)
    image = ImageOps.fit(image, view.size, Image.Resampling.LANCZOS, centering=view.place)
    return to_pixels(ImageOps.mirror(image) if view.mirrored else image)


def _views(row: Row, digest: str, config: DataConfig, fitting: Fitting) -> list[View]:
    size = measure(row.read(), row.where)
    return views(size, fitting.bucket(size), config, digest)


def _encode(vae: VAE, wanted: dict[str, tuple[Row, View]]) -> dict[str, Tensor]:
    device = next(vae.parameters()).device
    found: dict[str, Tensor] = {}
    bar = tqdm(total=len(wanted), desc="encoding pictures")
    for keys in _alike(wanted):
        pixels = torch.stack([load_view(*wanted[key]) for key in keys])
        with torch.no_grad():
            posterior = vae.encode(pixels.to(device))
        moments = torch.cat([posterior.mean, (0.5 * posterior.logvar).exp()], dim=1).half().cpu()
        found |= {key: value.clone() for key, value in zip(keys, moments, strict=True)}
        bar.update(len(keys))
    bar.close()
    return found


def _alike(wanted: dict[str, tuple[Row, View]]) -> Iterator[list[str]]:
    """Batches of keys whose cuts are of one size."""
    sizes: dict[tuple[int, int], list[str]] = {}
    for key, (_, view) in wanted.items():
        sizes.setdefault(view.size, []).append(key)
    for (width, height), keys in sizes.items():
        batch = max(1, PIXELS // (width * height))
        yield from (keys[start : start + batch] for start in range(0, len(keys), batch))


def _key(digest: str, view: View) -> str:
    width, height = view.size
    place = "" if view.place == (0.5, 0.5) else f" at {view.place[0]:.6f},{view.place[1]:.6f}"
    colour = "" if view.background == "white" else f" on {view.background}"
    return f"{digest} {width}x{height}{place}{' mirrored' if view.mirrored else ''}{colour}"


def _fingerprint(vae: VAE) -> str:
    return fingerprint((name, value) for name, value in vae.state_dict().items())


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of weights and their names, whatever device they are on."""
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name} {value.dtype}".encode())
        digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(cache: Path, model: str) -> dict[str, Tensor]:
    """What an earlier run kept; nothing if it is of another model, damaged or not there."""
    try:
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("model") != model:
                return {}
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}
