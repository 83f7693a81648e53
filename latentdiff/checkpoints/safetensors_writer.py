"""Write a safetensors file one tensor at a time: converting a model needs the memory of one tensor."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.checkpoints.tensor_files import TYPES, tensor_reader
from latentdiff.checkpoints.tensor_locations import Readers
from latentdiff.files import atomic_path

NAMES = {dtype: name for name, dtype in TYPES.items()}
ALIGNMENT = 8


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write. read: computes it immediately before it is written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[Readers], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(path: Path, tensors: Mapping[str, PlannedTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, planned in tensors.items():
        header[name] = {
            "dtype": NAMES[planned.dtype],
            "shape": list(planned.shape),
            "data_offsets": [offset, offset + planned.nbytes],
        }
        offset += planned.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    readers = cache(tensor_reader)
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for planned in tensors.values():
            value = planned.read(readers).to(planned.dtype).reshape(planned.shape).contiguous()
            file.write(value.flatten().view(torch.uint8).numpy().data)
