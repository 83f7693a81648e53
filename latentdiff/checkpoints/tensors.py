"""The tensors of a network in its safetensors files: found without being read, and read a few at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentdiff.errors import CheckpointError
from latentdiff.files import read_json

MAPPED_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor lies, and its shape there."""

    file: Path
    name: str
    shape: tuple[int, ...]


def find_tensors(folder: Path, stem: str, rename: Callable[[str], str | None]) -> dict[str, TensorLocation]:
    """The tensors of a component by their name here, but for those that `rename` calls None.

    They lie in one file, its fp16 variant, or the shards that an index lists; pickles are not read. Raises
    CheckpointError naming what is missing or damaged.
    """
    found = {}
    for file in _files(folder, stem):
        for name, shape in _shapes(file):
            if (key := rename(name)) is not None:
                found[key] = TensorLocation(file, name, shape)
    return found


def read_tensors(places: Iterable[TensorLocation], dtype: torch.dtype | None = None) -> Iterator[Tensor]:
    """Copies in `dtype`, by default the file's; no more than `MAPPED_BYTES` and a tensor of a file are held beside."""
    few: list[TensorLocation] = []
    size = 0
    for place in places:
        few.append(place)
        size += 4 * torch.Size(place.shape).numel()
        if size > MAPPED_BYTES:
            yield from (tensor.to(dtype or tensor.dtype, copy=True) for tensor in map_tensors(few))
            few, size = [], 0
    yield from (tensor.to(dtype or tensor.dtype, copy=True) for tensor in map_tensors(few))


def map_tensors(places: Iterable[TensorLocation]) -> Iterator[Tensor]:
    """The tensors as they lie in the files, mapped: what is touched counts as memory until all of them are gone."""
    opened: dict[Path, Any] = {}
    for place in places:
        try:
            if place.file not in opened:
                opened[place.file] = safe_open(place.file, "pt")
            tensor = opened[place.file].get_tensor(place.name)
        except (OSError, SafetensorError) as error:
            raise _damaged(place.file, error) from error
        yield tensor


def _files(folder: Path, stem: str) -> list[Path]:
    for name in (stem, f"{stem}.fp16"):
        if (single := folder / f"{name}.safetensors").is_file():
            return [single]
    if (index := folder / f"{stem}.safetensors.index.json").is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{index} names a shard outside its folder; download the model again")
        return [folder / name for name in names]
    if list(folder.glob("*.bin")):
        raise CheckpointError(f"{folder} holds only .bin pickles, which can run code; convert them to safetensors")
    raise CheckpointError(f"{folder / stem}.safetensors is missing; download or save the model again")


def _shapes(file: Path) -> list[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(file, "pt") as opened:
            return [(name, tuple(opened.get_slice(name).get_shape())) for name in opened.keys()]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file} is missing or damaged ({error}); download or save the model again")
