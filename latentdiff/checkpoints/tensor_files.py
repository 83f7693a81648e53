"""Open one file of named tensors: safetensors, PyTorch pickle (restricted to tensors) or GGUF."""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentdiff.errors import CheckpointError

SAFETENSORS = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
GGUF = ".gguf"
SUFFIXES = (SAFETENSORS, *PICKLES, GGUF)
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
INTEGER_TYPES = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
# Objects that training programs store with the weights; each becomes an `_Ignored`, and none of their code is executed.
IGNORED_CLASSES = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.types.EvaluateOutput",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
READ_ERRORS = (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, OverflowError)


@dataclass(frozen=True)
class TensorFile:
    """An open file: shapes and types by name, a function that reads one tensor, and the file's metadata."""

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]
    get: Callable[[str], Tensor]
    metadata: Mapping[str, str]


def problem_of(tensor: Tensor) -> str | None:
    """The reason why a tensor cannot be part of an adapter or a learned word: integers, or non-finite numbers."""
    if not tensor.is_floating_point():
        return f"contains {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
    return None if tensor.float().isfinite().all() else "contains NaN or infinite numbers; the training failed"


def open_tensor_file(file: Path, allow_pickle: bool = False) -> TensorFile:
    """Open by suffix. Raises CheckpointError for a damaged file, and for a pickle unless `allow_pickle`.

    A pickle is read by torch's restricted unpickler, which builds tensors and containers and calls nothing else.
    """
    try:
        if file.suffix == GGUF:
            return _cached(_open_gguf, file)
        if file.suffix in PICKLES:
            if not allow_pickle:
                raise CheckpointError(
                    f"{file} is a pickle, a format that can contain code; convert it to safetensors, or pass "
                    "--allow-pickle (allow_pickle=True) to read only its tensors"
                )
            return _cached(_open_pickle, file)
        return _open_safetensors(file)
    except READ_ERRORS as error:
        raise damaged(file, error) from error


def tensor_reader(file: Path) -> Callable[[str], Tensor]:
    """A function that reads tensors by name from an opened file, including pickles."""
    try:
        if file.suffix == SAFETENSORS:
            get: Callable[[str], Tensor] = safe_open(file, "pt").get_tensor
            return get
        return open_tensor_file(file, allow_pickle=True).get
    except READ_ERRORS as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read."""
    if isinstance(error, CheckpointError):
        return error
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"{file} is missing or damaged ({reason}); download or save it again")


def _open_safetensors(file: Path) -> TensorFile:
    opened = safe_open(file, "pt")
    shapes, types = {}, {}
    for name in opened.keys():  # noqa: SIM118
        part = opened.get_slice(name)
        shapes[name], types[name] = tuple(part.get_shape()), part.get_dtype()
    return TensorFile(shapes, types, opened.get_tensor, opened.metadata() or {})


def _cached(opener: Callable[..., TensorFile], file: Path) -> TensorFile:
    """Open with a cache of the last files, since parsing takes long; a modified file is opened again."""
    state = file.stat()
    return opener(file, state.st_size, state.st_mtime_ns)


class _Ignored:
    """Placeholder for objects in pickles that are neither tensors nor containers."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@lru_cache(maxsize=2)
def _open_pickle(file: Path, _size: int, _modified: int) -> TensorFile:
    with torch.serialization.safe_globals([(_Ignored, name) for name in IGNORED_CLASSES]):
        try:
            mapped = {"mmap": True} if _is_zip(file) else {}
            content = torch.load(file, map_location="cpu", weights_only=True, **mapped)
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, AssertionError, UnicodeError) as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = f"it calls {found[1]}" if found else "it is damaged, or contains other objects"
            raise CheckpointError(
                f"{file} is not a pickle of only tensors, and was not read: {reason}; use a safetensors file"
            ) from error
    tensors = dict(_named_tensors(content))
    if not tensors:
        raise CheckpointError(f"{file} contains no named tensors; give a checkpoint, a LoRA or an embedding")
    names = {dtype: name for name, dtype in TYPES.items()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    types = {name: names.get(value.dtype, str(value.dtype)) for name, value in tensors.items()}
    return TensorFile(shapes, types, tensors.__getitem__, _texts(content))


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"


def _named_tensors(content: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a state dict, or of the one under `state_dict`; names of nested dicts are joined by a dot."""
    if not isinstance(content, dict):
        return []
    content = content.get("state_dict", content)
    found: list[tuple[str, Tensor]] = []
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, Tensor):
            found.append((str(key), value.detach()))
        elif isinstance(value, dict):
            found += [(f"{key}.{name}", t.detach()) for name, t in value.items() if isinstance(t, Tensor)]
    return found


def _texts(content: Any) -> dict[str, str]:
    return {str(key): value for key, value in content.items() if isinstance(value, str)}


@lru_cache(maxsize=2)
def _open_gguf(file: Path, _size: int, _modified: int) -> TensorFile:
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(f"{file} is a GGUF file; pip install 'latentdiff[gguf]' to read it") from error
    try:
        reader: Any = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        found = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeError) as error:
        raise CheckpointError(f"{file} is not a readable GGUF file ({str(error)[:120]}); download it again") from error
    shapes = {name: _gguf_shape(tensor, fields) for name, tensor in found.items()}

    def get(name: str) -> Tensor:
        tensor = found[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(values.copy()).view(shapes[name])

    types = {name: tensor.tensor_type.name for name, tensor in found.items()}
    return TensorFile(shapes, types, get, {name: str(value)[:200] for name, value in fields.items()})


def _gguf_shape(tensor: Any, fields: dict[str, Any]) -> tuple[int, ...]:
    """The shape of a tensor: GGUF reverses the dimensions, and ComfyUI stores the shapes of flattened weights."""
    shape = fields.get(f"comfy.gguf.orig_shape.{tensor.name}") or [int(size) for size in tensor.shape[::-1]]
    return tuple(int(size) for size in shape)
