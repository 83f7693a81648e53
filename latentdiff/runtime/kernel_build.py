"""Compile the C++ kernels: one library per variant, that is, per set of instructions.

Imports the standard library only: the build hook (hatch_build_kernels.py) loads this file without torch.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KERNELS = Path(__file__).parent / "kernels"
FLAGS = [
    "-O3",
    "-std=c++17",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp-simd",
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
]
WIDE = "-mprefer-vector-width=512"


@dataclass(frozen=True)
class Variant:
    """`needs`: capabilities of the processor, by torch's names. `zig_cpu`: the CPU for `zig c++`, equivalent to
    `flags`.
    """

    name: str
    machine: str
    needs: tuple[str, ...]
    flags: tuple[str, ...]
    zig_cpu: str


AVX2 = ("avx2", "fma3", "bmi2", "f16c")
AVX512 = (*AVX2, "avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl")
BF16 = (*AVX512, "avx512_bf16")
AMX = (*BF16, "avx512_vbmi", "amx_tile", "amx_bf16")
V4_BF16 = ("-march=x86-64-v4", WIDE, "-mavx512bf16")
V4_AMX = (*V4_BF16, "-mavx512vbmi", "-mamx-tile", "-mamx-bf16")
VARIANTS = (  # the fastest first
    Variant("amx", "x86_64", AMX, V4_AMX, "x86_64_v4+avx512bf16+avx512vbmi+amx_tile+amx_bf16"),
    Variant("avx512_bf16", "x86_64", BF16, V4_BF16, "x86_64_v4+avx512bf16"),
    Variant("avx512", "x86_64", AVX512, ("-march=x86-64-v4", WIDE), "x86_64_v4"),
    Variant("avx2", "x86_64", AVX2, ("-march=x86-64-v3",), "x86_64_v3"),
    Variant("neon_bf16", "aarch64", ("neon", "bf16"), ("-march=armv8.2-a+bf16",), "generic+v8_2a+bf16"),
    Variant("neon", "aarch64", ("neon",), ("-march=armv8-a",), "generic"),
)
SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}
MACHINES = {"AMD64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}


def variants_of(machine: str) -> list[Variant]:
    """The variants for `machine`, as named by platform.machine(); the fastest first."""
    return [variant for variant in VARIANTS if variant.machine == MACHINES.get(machine, machine)]


def library_name(variant: Variant, system: str = sys.platform) -> str:
    return variant.name + SUFFIXES.get(system, ".so")


def compile_variant(variant: Variant, compiler: Sequence[str], target: Path, zig_target: str | None = None) -> None:
    """Compile into `target`; with `zig c++` for the platform `zig_target`.

    Raises OSError or subprocess.CalledProcessError (its `stderr` is text) if the compiler fails.
    """
    flags = [*FLAGS, *variant.flags]
    if zig_target is not None:
        flags = [*FLAGS, "-target", zig_target, f"-mcpu={variant.zig_cpu}", "-nostdlib++", "-s"]
    sources = sorted(KERNELS.glob("*.cpp"))
    english = os.environ | {"LC_ALL": "C"}
    subprocess.run(
        [*compiler, *flags, "-o", target, *sources],
        check=True, capture_output=True, text=True, errors="replace", env=english,
    )  # fmt: skip


def seal(library: Path) -> str:
    """The content of `library`.sha256: hashes of the file and of the sources and flags that it is compiled from."""
    return f"{hashlib.sha256(library.read_bytes()).hexdigest()} {source_hash()}\n"


def source_hash() -> str:
    """A hash of the sources and flags of the kernels."""
    sources = b"".join(path.read_bytes() for path in (*sorted(KERNELS.glob("*.[ch]*")), Path(__file__)))
    return hashlib.sha256(sources).hexdigest()
