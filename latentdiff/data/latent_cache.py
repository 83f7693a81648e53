"""Encode every crop of every picture once, and cache the mean and standard deviation that the VAE predicts."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from latentdiff.config.data import DataConfig
from latentdiff.data.bucket_plan import join_buckets
from latentdiff.data.buckets import Fitting, Size, View, views
from latentdiff.data.captions import choose_caption
from latentdiff.data.latent_shards import LatentShards
from latentdiff.data.layouts import DataRow
from latentdiff.data.parallel import FILES, PIXELS, threaded_map
from latentdiff.images.decoding import decode, measure, memory_needed, to_pixels
from latentdiff.models.vae import VAE

PIXELS_AT_ONCE = 2**19  # in one call of the encoder: 32 pictures of 128 x 128, or one of 1024 x 1024


class Crop(NamedTuple):
    """A view of a picture, and its key in the cache."""

    row: DataRow
    view: View
    key: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """The crops of a picture in the cache; with flips, the second half are mirrored.

    Each is float16 [2C, h, w], the mean and then the standard deviation. bucket: width and height in pixels.
    """

    shards: LatentShards
    keys: tuple[str, ...]
    bucket: Size

    @property
    def cuts(self) -> list[Tensor]:
        return [self.shards[key] for key in self.keys]


class LatentImages(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded pictures and captions by (row, draw), where the draw seeds the choice of the crop and the caption.

    Items: `mean` and `std` [C, h, w] in the VAE's own scale, `caption`, `weight`, `draw`.
    """

    def __init__(self, rows: list[DataRow], encoded: list[Encoded], config: DataConfig) -> None:
        self.rows, self.encoded, self.config = rows, encoded, config
        sizes = sorted({one.bucket for one in encoded})
        self.buckets = [sizes.index(one.bucket) for one in encoded]
        self.pictures = [row.picture for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, draw = item
        rng = random.Random(f"{index}/{draw}")
        encoded = self.encoded[index]
        keys = encoded.keys
        if self.config.flip:
            half = len(keys) // 2
            keys = keys[half:] if rng.random() < self.config.flip else keys[:half]
        mean, std = encoded.shards[rng.choice(keys)].float().chunk(2)
        row = self.rows[index]
        caption, weight = choose_caption(row, self.config, rng), torch.tensor(row.weight)
        return {"mean": mean, "std": std, "caption": caption, "weight": weight, "draw": draw}


def encode_rows(
    vae: VAE, rows: Sequence[DataRow], config: DataConfig, cache: Path, multiple: int | None = None, batch: int = 1
) -> list[Encoded]:
    """Encode the crops of all rows into the folder `cache`, unless it already contains them for this VAE and the same
    files.

    multiple: bucket sides are multiples of it; the VAE's factor if not given. batch: pictures per training step, for
    which small buckets are joined.
    """
    fitting = Fitting.of(config, multiple or vae.config.downscale)
    pictures = {row.picture: row for row in rows}
    repeats = Counter(row.picture for row in rows)
    surveyed = list(threaded_map(_survey, pictures.values()))
    buckets = join_buckets([size for _, size in surveyed], [repeats[picture] for picture in pictures], fitting, batch)
    shards = LatentShards(cache, fingerprint(vae.state_dict().items()))
    encoded: dict[tuple[str, str], Encoded] = {}
    missing: list[Crop] = []
    for (picture, row), (digest, size) in zip(pictures.items(), surveyed, strict=True):
        of_picture = [Crop(row, view, _key(digest, view)) for view in views(size, buckets[size], config, digest)]
        encoded[picture] = Encoded(shards, tuple(crop.key for crop in of_picture), buckets[size])
        missing += [crop for crop in of_picture if crop.key not in shards]
    if missing:
        shards.keep({key for one in encoded.values() for key in one.keys})
        _encode(vae, list({crop.key: crop for crop in missing}.values()), shards)
    return [encoded[row.picture] for row in rows]


def load_view(row: DataRow, view: View) -> Tensor:
    """float32 [3, H, W] in [-1, 1]: the crop that `view` describes."""
    with FILES.reserve(row.container.size(row.name)):
        data = row.read()
        with PIXELS.reserve(memory_needed(data, row.where)):
            image = decode(data, row.where, view.background)
            return _crop(image, view)


def _crop(image: Image.Image, view: View) -> Tensor:
    image = ImageOps.fit(image, view.size, Image.Resampling.LANCZOS, centering=view.place)
    return to_pixels(ImageOps.mirror(image) if view.mirrored else image)


def _survey(row: DataRow) -> tuple[str, Size]:
    """The hash of a picture's bytes, and its size."""
    with FILES.reserve(row.container.size(row.name)):
        data = row.read()
        return hashlib.sha256(data).hexdigest(), measure(data, row.where)


def _encode(vae: VAE, missing: list[Crop], shards: LatentShards) -> None:
    """Encode crops, ordered by size, while others are decoded. An interruption loses at most one shard."""
    device = next(vae.parameters()).device
    missing = sorted(missing, key=lambda crop: crop.view.size)
    loaded = threaded_map(lambda crop: load_view(crop.row, crop.view), missing)
    with tqdm(total=len(missing), desc="encoding pictures") as bar:
        try:
            for part in _batches(missing):
                pixels = torch.stack([next(loaded) for _ in part])
                with torch.no_grad():
                    posterior = vae.encode(pixels.to(device))
                moments = torch.cat([posterior.mean, (0.5 * posterior.logvar).exp()], dim=1)
                shards.add([crop.key for crop in part], moments)
                bar.update(len(part))
        finally:
            shards.flush()


def _batches(crops: list[Crop]) -> Iterator[list[Crop]]:
    """Batches of crops of one size, from crops that are ordered by size."""
    for (width, height), group in groupby(crops, key=lambda crop: crop.view.size):
        of_size, batch = list(group), max(1, PIXELS_AT_ONCE // (width * height))
        yield from (of_size[start : start + batch] for start in range(0, len(of_size), batch))


def _key(digest: str, view: View) -> str:
    width, height = view.size
    place = "" if view.place == (0.5, 0.5) else f" at {view.place[0]:.6f},{view.place[1]:.6f}"
    colour = "" if view.background == "white" else f" on {view.background}"
    return f"{digest} {width}x{height}{place}{' mirrored' if view.mirrored else ''}{colour}"


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of weights and their names, independent of the device."""
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name} {value.dtype}".encode())
        digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
