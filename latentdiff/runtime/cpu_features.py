"""Detect the instruction sets of this machine's processor."""

import ctypes
import hashlib
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")
NAMES = {  # names that differ between torch and Linux
    "fma": "fma3",
    "asimd": "neon",
    "avx512f": "avx512_f",
    "avx512bw": "avx512_bw",
    "avx512cd": "avx512_cd",
    "avx512dq": "avx512_dq",
    "avx512vl": "avx512_vl",
    "avx512vbmi": "avx512_vbmi",
}


@cache
def capabilities() -> frozenset[str]:
    """The instruction sets that can be used here, by torch's names, for example `avx512_bf16`."""
    ask: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.10 and later
    found = {name for name, value in ask().items() if value is True}
    if not found:
        words = _cpuinfo_line("flags", "Features").partition(":")[2].split()
        found = {NAMES.get(word, word) for word in words}
    if platform.machine() in ("aarch64", "arm64", "ARM64"):
        found.add("neon")  # part of the architecture
    if "amx_tile" in found and not _may_use_amx():
        found -= {name for name in found if name.startswith("amx_")}
    return frozenset(found)


def cpu_has(capability: str) -> bool:
    return capability in capabilities()


def processor() -> str:
    """The processor architecture and a hash of its capabilities, which identify code compiled for it."""
    digest = hashlib.sha256(" ".join(sorted(capabilities())).encode()).hexdigest()[:16]
    return f"{platform.machine()}-{digest}"


def _cpuinfo_line(*keys: str) -> str:
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    return next((line for line in lines if line.startswith(keys)), "")


def _may_use_amx() -> bool:
    """Request permission to use AMX from Linux (arch_prctl, ARCH_REQ_XCOMP_PERM)."""
    if platform.system() != "Linux":
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0
