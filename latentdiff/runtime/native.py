"""Load our C++ kernels: one library for each variant, selected by CPU features, never by vendor.

A wheel contains the variants for its platform. Without them, the required one is compiled with `c++` at first use and
kept in the user's cache folder. Without a compiler, torch's layers are used and a warning is issued. A compiler that
fails is not called again by later processes, unless the compiler or the sources change, or for `latentdiff env`.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentdiff.errors import InputError, did_you_mean
from latentdiff.files import atomic_path
from latentdiff.runtime.cpu_features import capabilities
from latentdiff.runtime.kernel_build import (
    KERNELS,
    Variant,
    compile_variant,
    library_name,
    seal,
    source_hash,
    variants_of,
)

SUFFIX = {torch.bfloat16: "bf16", torch.float32: "fp32"}  # of the names of kernels
C_TYPES: dict[type, Any] = {int: ctypes.c_int64, float: ctypes.c_float}  # other arguments are addresses
SWITCH = "LATENTDIFF_KERNELS"
INSTALLED = KERNELS / "lib"
_ONE_AT_A_TIME = Lock()


def load_kernels() -> ctypes.CDLL | None:
    """The fastest variant that runs here, or the one that LATENTDIFF_KERNELS names; None if no variant runs.

    Raises InputError for an unknown name.
    """
    return _loaded().library


def kernel_variant() -> str | None:
    """The variant in use."""
    return _loaded().variant


def problems() -> dict[str, str]:
    """The variants that run on this processor but could not be installed, compiled or loaded, each with the reason."""
    return _loaded().problems


def why_none() -> str:
    """The reason why no variant is in use."""
    if os.environ.get(SWITCH) == "off":
        return f"{SWITCH}=off"
    return next(iter(problems().values()), "there are no native kernels for this processor")


def variants() -> dict[str, tuple[str, ...]]:
    """The variants for this kind of machine, each with the capabilities that this processor lacks."""
    here = capabilities()
    return {v.name: tuple(need for need in v.needs if need not in here) for v in variants_of(platform.machine())}


def provides(kernel: str) -> bool:
    """Whether the variant in use has this kernel."""
    return _has(load_kernels(), kernel)


@cache  # ctypes looks up a missing name again every time
def _has(library: ctypes.CDLL | None, kernel: str) -> bool:
    return hasattr(library, kernel)


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel with torch's number of threads. Tensors are passed as addresses, None as a null pointer."""
    kernel = getattr(load_kernels(), name)
    if kernel.argtypes is None:
        kernel.argtypes = [ctypes.c_int64, *(C_TYPES.get(type(a), ctypes.c_void_p) for a in arguments)]
        kernel.restype = None
    kernel(torch.get_num_threads(), *[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def cache_folder() -> Path:
    """`latentdiff` in the user's cache folder (XDG base directories); if there is none, a new folder per process."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "latentdiff"
    try:
        return Path.home() / ".cache" / "latentdiff"
    except RuntimeError:  # neither HOME nor an entry in the password database
        return _private_folder()


@cache
def _private_folder() -> Path:
    """A folder of this process: libraries are loaded from it, so other users must not be able to write there."""
    return Path(tempfile.mkdtemp(prefix="latentdiff-"))


class _Loaded(NamedTuple):
    """The variant in use, its library, and the reasons why better variants are not used."""

    variant: str | None
    library: ctypes.CDLL | None
    problems: dict[str, str]


def _loaded() -> _Loaded:
    with _ONE_AT_A_TIME:
        return _load()


@cache
def _load() -> _Loaded:
    candidates = _candidates()
    problems: dict[str, str] = {}
    news: list[str] = []
    for variant in candidates:
        for find in (_installed, _compiled):
            try:
                library = find(variant)
                if library is not None:
                    return _Loaded(_with_notice(variant.name, news), ctypes.CDLL(str(library)), problems)
            except (OSError, _UnusableError) as error:
                before = problems.get(variant.name)  # of the installed library, if this is of the compiler
                problems[variant.name] = f"{before}; {error}" if before else str(error)
                if not isinstance(error, _ReportedError):
                    news.append(str(error))
    return _Loaded(_with_notice(None, news), None, problems)


class _UnusableError(Exception):
    """The reason why a library cannot be used, without a final full stop."""


class _CompilerError(_UnusableError):
    """The compiler's reason for a failure."""


class _ReportedError(_UnusableError):
    """The reason why an earlier process could not compile a library, of which it warned."""


def _with_notice(name: str | None, problems: list[str]) -> str | None:
    if problems:
        used = "torch's own layers are used instead" if name is None else f"the variant {name} is used"
        warnings.warn(f"CPU kernels: {problems[0]}; {used}", stacklevel=6)
    return name


def _installed(variant: Variant) -> Path | None:
    """The installed library, or None if the package contains none."""
    library = INSTALLED / library_name(variant)
    if not library.exists():
        return None
    if not _is_sealed(library):
        raise _UnusableError(f"{library} is damaged or of another version, install latentdiff again")
    return library


def _compiled(variant: Variant) -> Path:
    """The library in the cache folder, which is compiled if it is missing."""
    library = cache_folder() / "kernels" / library_name(variant)
    if _is_sealed(library):
        return library
    compiler = shutil.which("c++")
    if compiler is None:
        raise _UnusableError("no library came with the package and no compiler (c++) is on the PATH")
    failure, attempt = _failure(library), f"{source_hash()} {compiler} {Path(compiler).stat().st_mtime_ns}"
    text = failure.read_text(encoding="utf-8", errors="replace") if failure.is_file() else ""
    before, _, reason = text.partition("\n")
    if before == attempt and reason:
        raise _ReportedError(reason)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(library) as temporary:
            _compile(variant, compiler, temporary)
            sealed = seal(temporary)
        with atomic_path(_seal_path(library)) as temporary:
            temporary.write_text(sealed)
    except _CompilerError as error:
        with suppress(OSError):
            failure.write_text(f"{attempt}\n{error}", encoding="utf-8")
        raise
    except OSError as error:
        raise _UnusableError(f"{library.parent} cannot be written ({error.strerror}), set XDG_CACHE_HOME") from error
    return library


def _failure(library: Path) -> Path:
    """The file that states which compiler failed, and why."""
    return library.with_suffix(".failed")


def forget_failures() -> None:
    """Let this process call compilers again that failed in earlier ones, perhaps for lack of a header or of space."""
    for variant in variants_of(platform.machine()):
        with suppress(OSError):
            _failure(cache_folder() / "kernels" / library_name(variant)).unlink()


def _compile(variant: Variant, compiler: str, target: Path) -> None:
    try:
        compile_variant(variant, [compiler], target)
    except subprocess.CalledProcessError as error:
        raise _CompilerError(f"{compiler} cannot compile {variant.name} ({_error_line(error)})") from error
    except OSError as error:
        raise _UnusableError(f"{compiler} cannot be run ({error.strerror}), install another compiler") from error


def _is_sealed(library: Path) -> bool:
    """Whether a library is complete and was built from the current sources."""
    try:
        return _seal_path(library).read_text() == seal(library)
    except (OSError, UnicodeDecodeError):
        return False


def _seal_path(library: Path) -> Path:
    return library.with_name(library.name + ".sha256")


def _error_line(error: subprocess.CalledProcessError) -> str:
    """The first error that a compiler printed, or else its last line, or its exit status if it printed nothing."""
    lines = (error.stderr or "").strip().splitlines() or [f"exit status {error.returncode}"]
    return next((line for line in lines if "error:" in line), lines[-1])[:200]


def _candidates() -> list[Variant]:
    wanted, lacking = os.environ.get(SWITCH), variants()
    usable = [v for v in variants_of(platform.machine()) if not lacking[v.name]]
    if wanted == "off":
        return []
    if not wanted:
        return usable
    if wanted not in lacking:
        raise InputError(f"{SWITCH}={wanted!r} is unknown here; {did_you_mean(wanted, [*lacking, 'off'])}")
    if lacking[wanted]:
        best = f"the variant {usable[0].name} is used" if usable else "torch's own layers are used instead"
        warnings.warn(f"{SWITCH}={wanted} needs {lacking[wanted][0]}, which this processor lacks; {best}", stacklevel=6)
        return usable
    return [v for v in usable if v.name == wanted]
