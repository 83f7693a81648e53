"""How much memory this process has held, and the C library's allocator, told what to keep and what to give back."""

import ctypes
import platform
import resource
import sys
from functools import cache
from threading import Lock

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
PAD = 64 * 1024 * 1024
OWN, MAPS = 128 * 1024, 65536  # what glibc begins with; told so, it no longer raises its threshold by itself
_ONE_AT_A_TIME = Lock()
_keeping: bool | None = None


def keep_freed_memory() -> None:
    """From here on have glibc keep freed blocks for the next allocation; elsewhere do nothing.

    By itself it maps each large tensor anew and gives it back when freed, so that each U-Net call touches its memory
    page by page: over 50,000 page faults at the size of Stable Diffusion 1.5, a tenth of the call. What
    was needed once, as for one large picture, is then held until `map_large_blocks`.
    """
    if not _keeping:
        _switch(True, {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: PAD})


def map_large_blocks() -> None:
    """Have glibc give back what it kept, and from here on map each large block by itself.

    For weights, which stay: between activations they would leave holes that nothing larger fits into. One that gives
    way to another order of itself then goes back to the system at once.
    """
    if _keeping is not False:
        _switch(False, {MMAP_MAX: MAPS, MMAP_THRESHOLD: OWN, TOP_PAD: OWN})


def _switch(keeping: bool, options: dict[int, int]) -> None:
    global _keeping
    with _ONE_AT_A_TIME:
        _keeping = keeping
        if libc := _glibc():
            for option, value in options.items():
                libc.mallopt(option, value)
            if not keeping:
                libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held: on the GPU if `device` is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # getrusage(2): bytes there, KiB on Linux
