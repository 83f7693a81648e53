"""Device, precision and attention kernel of a computation. The package affects speed only, not the maths."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentdiff.errors import InputError, did_you_mean
from latentdiff.runtime.processor import cpu_has

SHORT_ATTENTION = 1024
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


def attention_for_training(latents: Tensor) -> AbstractContextManager[None]:
    """The attention kernel whose backward pass is fastest for latents [B, C, h, w].

    On the CPU, PyTorch's flash kernel takes a fifth of a training step with small pictures; two plain matrix products
    take a tenth (78 instead of 66 samples per second with the bundled U-Net). Long sequences need the flash kernel.
    """
    if latents.device.type == "cpu" and latents.shape[-2] * latents.shape[-1] <= SHORT_ATTENTION:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # despite its name, it also applies to the CPU
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
