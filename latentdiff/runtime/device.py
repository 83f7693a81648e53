"""Pick the device and the dtype of a computation from the names that users give."""

import torch

from latentdiff.errors import InputError, did_you_mean
from latentdiff.runtime.cpu_features import cpu_has

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` selects the first available of CUDA, Apple's MPS and the CPU. Raises InputError if unavailable."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device without data, such as meta, raises here
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r} is not usable here ({str(error).splitlines()[0]}); try cpu") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and on CPUs that support it, else float32. Raises InputError for an unknown name.

    CPUs multiply it with AVX-512 BF16, which those with AMX have too; docs/speed.md has the measurements.
    """
    if name == "auto":
        multiplies = device.type == "cuda" or (device.type == "cpu" and cpu_has("avx512_bf16"))
        return torch.bfloat16 if multiplies else torch.float32
    if name not in DTYPES:
        raise InputError(f"dtype={name!r} is unknown; {did_you_mean(name, ['auto', *DTYPES])}")
    return DTYPES[name]
