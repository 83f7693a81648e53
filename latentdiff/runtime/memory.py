"""Peak memory of the process, and settings of glibc's allocator: what to keep and what to return to the system."""

import ctypes
import platform
import sys
from functools import cache
from threading import Lock

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
PAD = 64 * 1024 * 1024
OWN, MAPS = 128 * 1024, 65536  # glibc's defaults; if set explicitly, the threshold no longer grows automatically
_ONE_AT_A_TIME = Lock()
_keeping: bool | None = None


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks for later allocations; does nothing with other C libraries.

    By default glibc maps each large tensor separately and unmaps it when freed, so that each U-Net call faults its
    memory in page by page: over 50,000 page faults at the size of Stable Diffusion 1.5, a tenth of the call. Memory
    that was needed once, for example by one large image, is then held until `map_large_blocks`.
    """
    if not _keeping:
        _switch(True, {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: PAD})


def map_large_blocks() -> None:
    """Return kept memory to the system, and map each large block separately from now on.

    For weights, which are long-lived: between activations they would fragment the heap. A weight that is replaced by
    its packed form is then returned to the system at once.
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
    """Peak memory of this process in bytes: of the GPU if `device` is one, else resident; 0 if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # POSIX only

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # getrusage(2): bytes there, KiB on Linux
