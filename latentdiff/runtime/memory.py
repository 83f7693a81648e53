"""How much memory this process has held, and the C library's allocator, told to keep what it has."""

import ctypes
import platform
import resource
import sys
from functools import cache

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # glibc's malloc.h
PAD = 64 * 1024 * 1024


@cache
def keep_freed_memory() -> None:
    """Have glibc keep freed blocks for the next allocation, for the life of the process; elsewhere do nothing.

    By itself it maps each large tensor anew and gives it back when freed, so that each U-Net call touches its memory
    page by page: over 50,000 page faults at the size of Stable Diffusion 1.5, a tenth of the call. What
    was needed once, as for one large picture, is then held until the process ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, PAD)):
        libc.mallopt(option, value)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held: on the GPU if `device` is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # getrusage(2): bytes there, KiB on Linux
