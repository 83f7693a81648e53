"""Find the tensors of a network in its files, and read them a few at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.checkpoints.tensor_files import (
    PICKLES,
    READ_ERRORS,
    SAFETENSORS,
    damaged,
    open_tensor_file,
    tensor_reader,
)
from latentdiff.errors import CheckpointError
from latentdiff.files import read_json

Readers = Callable[[Path], Callable[[str], Tensor]]
MAPPED_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class TensorLocation:
    """The file and name of a stored tensor that contains a weight. shape: of the weight.

    rows: (start, end) if the tensor joins several weights. transposed: the tensor is stored as [in, out].
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    type: str = "F32"
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def take(self, stored: Tensor) -> Tensor:
        """The weight as a view of the stored tensor."""
        part = stored if self.rows is None else stored[self.rows[0] : self.rows[1]]
        return part.t() if self.transposed else part.reshape(self.shape)


def find_tensors(
    folder: Path, stem: str, rename: Callable[[str], str | None], variant: str | None = None, allow_pickle: bool = False
) -> dict[str, TensorLocation]:
    """Locate the tensors of a component, by their names from `rename`; those with the name None are omitted.

    They are in one file, or in shards listed by an index, optionally of a variant (`fp16`); without `variant`, files
    without one are preferred. Raises CheckpointError naming what is missing or damaged.
    """
    found = {}
    for file, listed in _component_files(folder, stem, variant, allow_pickle).items():
        opened = open_tensor_file(file, allow_pickle)
        for name in opened.shapes if listed is None else listed:
            if name not in opened.shapes:
                raise CheckpointError(f"{file} lacks tensor {name}, which its index lists; download the model again")
            if (key := rename(name)) is not None:
                found[key] = TensorLocation(file, name, opened.shapes[name], opened.types[name])
    return found


def read_tensors(locations: Iterable[TensorLocation], dtype: torch.dtype | None = None) -> Iterator[Tensor]:
    """Contiguous copies in `dtype`, by default that of the file; about `MAPPED_BYTES` are mapped at a time."""
    few: list[TensorLocation] = []
    size = 0
    for location in locations:
        few.append(location)
        size += 4 * torch.Size(location.shape).numel()
        if size > MAPPED_BYTES:
            yield from _copies(few, dtype)
            few, size = [], 0
    yield from _copies(few, dtype)


def _copies(locations: list[TensorLocation], dtype: torch.dtype | None) -> Iterator[Tensor]:
    for tensor in map_tensors(locations):
        yield torch.empty(tensor.shape, dtype=dtype or tensor.dtype).copy_(tensor)


def map_tensors(locations: Iterable[TensorLocation]) -> Iterator[Tensor]:
    """Memory-mapped tensors as stored. Pages that are read stay in memory until all of these tensors are released."""
    readers = cache(tensor_reader)
    for location in locations:
        yield read_tensor(location, readers)


def read_tensor(location: TensorLocation, readers: Readers = tensor_reader) -> Tensor:
    """One tensor as stored; `readers` opens its file. Raises CheckpointError if the file was changed or is damaged."""
    try:
        return location.take(readers(location.file)(location.name))
    except READ_ERRORS as error:
        raise damaged(location.file, error) from error


def _component_files(folder: Path, stem: str, variant: str | None, allow_pickle: bool) -> dict[Path, list[str] | None]:
    """The files of a component, with the names of the tensors to read from each; None for all."""
    stems, suffixes = {stem, stem.replace("diffusion_", "")}, [SAFETENSORS]
    if allow_pickle:
        stems.add("pytorch_model")
        suffixes.append(".bin")
    for suffix in suffixes:
        for name in sorted(stems):
            if (files := _single_or_shards(folder, name, suffix, variant)) is not None:
                return files
    if any(path.suffix in PICKLES for path in folder.glob("*")):
        raise CheckpointError(
            f"{folder} contains only pickles, which can contain code; convert them to safetensors, or pass "
            "--allow-pickle"
        )
    if variant:
        missing = folder / f"{stem}.{variant}.safetensors"
        raise CheckpointError(f"{missing} is missing; choose another variant, or omit it")
    raise CheckpointError(f"{folder / stem}.safetensors is missing; download or save the model again")


def _single_or_shards(folder: Path, stem: str, suffix: str, variant: str | None) -> dict[Path, list[str] | None] | None:
    for name in [variant] if variant is not None else _variants(folder, stem, suffix):
        inner = f".{name}" if name else ""
        if (single := folder / f"{stem}{inner}{suffix}").is_file():
            return {single: None}
        for index in (f"{stem}{suffix}.index{inner}.json", f"{stem}{inner}{suffix}.index.json"):
            if (folder / index).is_file():
                return _shards(folder / index)
    return None


def _variants(folder: Path, stem: str, suffix: str) -> list[str]:
    """Variants of the files in a folder: no variant first, then fp16, then the others by name."""
    found = set()
    for path in folder.glob(f"{stem}*"):
        inner = path.name.removeprefix(stem)
        for before, after in (("", suffix), (f"{suffix}.index", ".json"), ("", f"{suffix}.index.json")):
            if inner.startswith(before) and inner.endswith(after):
                found.add(inner[len(before) : len(inner) - len(after)].removeprefix("."))
    return sorted(found, key=lambda name: (name != "", name != "fp16", name))


def _shards(index: Path) -> dict[Path, list[str] | None]:
    """Tensors by shard. Raises CheckpointError for an index that is damaged or names a file outside its folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()) or not names:
        raise CheckpointError(f"{index} has no weight_map of tensors to files; download the model again")
    files: dict[Path, list[str] | None] = {}
    for key, name in names.items():
        if Path(name).name != name:
            raise CheckpointError(f"{index} names a shard outside its folder; download the model again")
        listed = files.setdefault(index.parent / name, [])
        assert listed is not None
        listed.append(key)
    return files
