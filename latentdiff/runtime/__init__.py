"""Where the numbers are computed, and in what precision. About speed, nothing about maths."""

import torch

from latentdiff.errors import InputError, did_you_mean

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` takes the first of CUDA, Apple's MPS and the CPU that is there. Raises InputError for one that is not."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r} is not usable here ({str(error).splitlines()[0]}); try cpu") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere. Raises InputError for an unknown name."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise InputError(f"dtype={name!r} is unknown; {did_you_mean(name, ['auto', *DTYPES])}")
    return DTYPES[name]
