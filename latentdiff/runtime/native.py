"""Our C++ kernels: compiled once for this processor by the compiler that is here, or not there at all."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from latentdiff.files import atomic_path

KERNELS = Path(__file__).parent / "kernels"
SOURCES = [KERNELS / f"{name}.cpp" for name in ("norms", "attention", "linear", "conv3x3_small", "conv3x3_large")]
HEADERS = [KERNELS / name for name in ("amx.h", "attention.h", "gelu.h")]
FLAGS = [
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
]
C_TYPES: dict[type, Any] = {int: ctypes.c_int64, float: ctypes.c_float}  # anything else is an address
SWITCH = "LATENTDIFF_NATIVE"
ON = ("Linux", "x86_64")
_ONE_AT_A_TIME = Lock()


def load_kernels() -> ctypes.CDLL | None:
    """The kernels, or None: on another system than Linux on x86-64, without `c++`, or with LATENTDIFF_NATIVE=0."""
    with _ONE_AT_A_TIME:
        return _load()


@cache
def _load() -> ctypes.CDLL | None:
    compiler = shutil.which("c++")
    if os.environ.get(SWITCH) == "0" or compiler is None or (platform.system(), platform.machine()) != ON:
        return None
    path = cache_folder() / f"native-{_key(compiler)}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                subprocess.run([compiler, *FLAGS, "-o", temporary, *SOURCES], check=True, capture_output=True)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def has_amx() -> bool:
    """Whether there are kernels for AMX: on processors that have it, where the system lets it be used."""
    ready = getattr(load_kernels(), "amx_ready", None)  # not compiled in on other processors
    return ready is not None and ready() == 1


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel. A tensor stands for its address, None for none; which there must be is the kernel's to say."""
    kernel = getattr(load_kernels(), name)
    if kernel.argtypes is None:
        kernel.argtypes = [C_TYPES.get(type(a), ctypes.c_void_p) for a in arguments]
    kernel(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


def cache_folder() -> Path:
    """`latentdiff` in the user's cache folder (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentdiff"


def _key(compiler: str) -> str:
    """What the compiled file depends on: the source, the flags, the compiler and what this processor can do."""
    found = Path(compiler).stat()
    parts = [
        *(source.read_text(encoding="utf-8") for source in (*SOURCES, *HEADERS)),
        *FLAGS,
        compiler,
        f"{found.st_size} {found.st_mtime_ns}",
        processor(),
    ]
    return _hash("\n".join(parts))


def processor() -> str:
    """The kind of processor, and a hash of what it can do where the system tells: what code for it depends on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else [platform.processor()]
    return f"{platform.machine()}-{_hash(next((line for line in lines if line.startswith('flags')), lines[0]))}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
