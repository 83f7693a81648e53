"""Which kernel library is loaded, and the warnings if the best one cannot be."""

import ctypes
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from latentdiff.errors import InputError
from latentdiff.runtime import cpu_features, native
from latentdiff.runtime.kernel_build import AVX2, BF16, Variant, compile_variant, library_name, seal, variants_of
from tests.runtime.variants import HAS_COMPILER

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these variants are for x86-64"),
    pytest.mark.skipif(not HAS_COMPILER, reason="no compiler"),
]
NAMES = ["amx", "avx512_bf16", "avx512", "avx2"]


@pytest.fixture(autouse=True)
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of variants that a test compiles, as empty libraries, on a processor with AVX-512 BF16 but not AMX."""
    done: list[str] = []

    def compile_empty(variant: Variant, compiler: Sequence[str], target: Path) -> None:
        done.append(variant.name)
        subprocess.run([*compiler, "-shared", "-x", "c++", "/dev/null", "-o", target], check=True)

    monkeypatch.setattr(native, "compile_variant", compile_empty)
    monkeypatch.setattr(native, "capabilities", lambda: frozenset(BF16))
    monkeypatch.setattr(native, "INSTALLED", tmp_path / "installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.SWITCH, raising=False)
    native._load.cache_clear()
    yield done
    native._load.cache_clear()


def library(folder: Path, name: str) -> Path:
    return folder / library_name(next(v for v in variants_of(platform.machine()) if v.name == name))


def install(name: str) -> Path:
    """Install an empty library as part of the package."""
    path = library(native.INSTALLED, name)
    path.parent.mkdir(exist_ok=True)
    subprocess.run(["c++", "-shared", "-x", "c++", "/dev/null", "-o", path], check=True)
    path.with_name(f"{path.name}.sha256").write_text(seal(path))
    return path


def load_silently() -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return native.kernel_variant()


@pytest.mark.parametrize(
    ("lacking", "best"), [("amx_tile", "avx512_bf16"), ("avx512_bf16", "avx512"), ("avx512_f", "avx2"), ("avx2", None)]
)
def test_the_best_variant_that_the_processor_can_run_is_compiled_at_first_use(
    lacking: str, best: str | None, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "capabilities", lambda: frozenset(BF16) - {lacking})
    assert load_silently() == best
    native._load.cache_clear()
    assert load_silently() == best and compiled == ([best] if best else [])


def test_simultaneous_threads_get_the_same_library(compiled: list[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: native.load_kernels(), range(4)))
    assert isinstance(found[0], ctypes.CDLL) and all(kernels is found[0] for kernels in found)
    assert compiled == ["avx512_bf16"]


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_variant_can_be_forced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, name)
    assert load_silently() == name


def test_kernels_can_be_switched_off(compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "off")
    assert load_silently() is None and compiled == []


def test_a_forced_variant_that_the_processor_cannot_run_falls_back_to_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "amx")
    with pytest.warns(UserWarning, match=r"amx needs avx512_vbmi.*lacks; the variant avx512_bf16 is used"):
        assert native.kernel_variant() == "avx512_bf16"


def test_an_unknown_variant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "avx51")
    with pytest.raises(InputError, match=r"LATENTDIFF_KERNELS='avx51' is unknown here; did you mean 'avx512'"):
        native.load_kernels()


def test_without_a_compiler_a_warning_names_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match=r"no compiler \(c\+\+\) is on the PATH; torch's own layers are used"):
        assert native.load_kernels() is None


def test_a_compiler_that_fails_is_reported_once_and_called_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, calls = tmp_path / "c++", tmp_path / "calls"
    compiler.write_text(f"#!/bin/sh\necho x >> {calls}\necho 'x.cpp:1: error: no such flag' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native.shutil, "which", lambda name: str(compiler))
    monkeypatch.setattr(native, "compile_variant", compile_variant)
    with pytest.warns(UserWarning, match=r"cannot compile .* \(x.cpp:1: error: no such flag\); torch's own layers"):
        assert native.load_kernels() is None
    tried = len(calls.read_text().split())
    native._load.cache_clear()  # as in a new process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.load_kernels() is None and len(calls.read_text().split()) == tried
    assert "cannot compile" in native.why_none() and "no such flag" in native.why_none()
    os.utime(compiler, ns=(1, 1))
    for again in (2, 3):
        native._load.cache_clear()
        with pytest.warns(UserWarning, match="cannot compile"):
            assert native.load_kernels() is None and len(calls.read_text().split()) == again * tried
        native.forget_failures()  # as `latentdiff env` does


def test_an_installed_library_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    monkeypatch.setattr(native, "capabilities", lambda: frozenset(AVX2))
    install("avx2")
    assert load_silently() == "avx2"


@pytest.mark.parametrize("spoil", [lambda data: data[:1000], lambda data: data[:-1] + b"x", lambda data: b""])
def test_a_damaged_installed_library_is_never_loaded(spoil: object, compiled: list[str]) -> None:
    path = install("avx512_bf16")
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"is damaged or of another version.*avx512_bf16 is used"):
        assert native.kernel_variant() == "avx512_bf16"
    assert compiled == ["avx512_bf16"]


def test_without_a_compiler_the_next_best_installed_variant_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    install("avx512_bf16").write_bytes(b"not a library")
    install("avx2")
    with pytest.warns(UserWarning, match=r"is damaged or of another version.*avx2 is used"):
        assert native.kernel_variant() == "avx2"


def test_a_library_of_another_version_is_not_loaded() -> None:
    path = install("avx512_bf16")
    file_hash = seal(path).split()[0]
    path.with_name(f"{path.name}.sha256").write_text(f"{file_hash} {'0' * 64}\n")
    with pytest.warns(UserWarning, match="of another version"):
        assert native.kernel_variant() == "avx512_bf16"


def test_a_file_that_is_not_a_library_for_this_machine_is_not_loaded() -> None:
    path = install("avx512_bf16")
    path.write_bytes(b"\x7fELF\x01 of another machine")
    path.with_name(f"{path.name}.sha256").write_text(seal(path))
    with pytest.warns(UserWarning, match="avx512_bf16 is used"):
        assert native.kernel_variant() == "avx512_bf16"


def test_a_damaged_library_in_the_cache_is_compiled_again(compiled: list[str]) -> None:
    assert load_silently() == "avx512_bf16"
    path = library(native.cache_folder() / "kernels", "avx512_bf16")
    path.unlink()  # this process has mapped the old file, and would crash at exit if it were truncated
    path.write_bytes(b"not a library")
    native._load.cache_clear()
    assert load_silently() == "avx512_bf16" and compiled == ["avx512_bf16"] * 2


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"kernels cannot be written \(Not a directory\), set XDG_CACHE_HOME"):
        assert native.load_kernels() is None


def test_a_compiler_that_fails_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise subprocess.CalledProcessError(1, "c++", stderr="note\nx.cpp:3: error: unknown -mavx512bf16\n")

    monkeypatch.setattr(native, "compile_variant", fail)
    with pytest.warns(UserWarning, match=r"cannot compile avx512_bf16 \(x\.cpp:3: error: unknown -mavx512bf16\)"):
        assert native.load_kernels() is None


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("in error.h:\nx.cpp:3: error: unknown\n", "(x.cpp:3: error: unknown)"),
        ("a\nlast\n", "(last)"),
        ("", "(exit status 1)"),
    ],
)
def test_the_reason_of_a_compiler_is_one_line(stderr: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise subprocess.CalledProcessError(1, "c++", stderr=stderr)

    monkeypatch.setattr(native, "compile_variant", fail)
    with pytest.warns(UserWarning, match=re.escape(f"cannot compile avx512_bf16 {reason}; torch's own layers")):
        assert native.load_kernels() is None


def test_a_compiler_that_cannot_be_run_is_not_called_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c++").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setattr(native.shutil, "which", lambda name: str(tmp_path / "c++"))
    monkeypatch.setattr(native, "compile_variant", compile_variant)
    with pytest.warns(
        UserWarning, match=r"c\+\+ cannot be run \(Exec format error\), install another compiler; torch's"
    ):
        assert native.load_kernels() is None


def test_a_damaged_installed_library_does_not_hide_why_it_was_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise subprocess.CalledProcessError(1, "c++", stderr="x.cpp:3: error: unknown\n")

    install("avx512_bf16").write_bytes(b"not a library")
    monkeypatch.setattr(native, "compile_variant", fail)
    with pytest.warns(UserWarning, match="is damaged"):
        assert native.load_kernels() is None
    assert "is damaged" in native.why_none() and "cannot compile avx512_bf16 (x.cpp:3" in native.why_none()


@pytest.mark.skipif(not cpu_features.CPUINFO.exists(), reason="no /proc/cpuinfo")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="torch before 2.10")
def test_proc_cpuinfo_and_torch_report_the_same_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {need for v in variants_of(platform.machine()) for need in v.needs}
    known = cpu_features.capabilities() & needed
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert cpu_features.capabilities.__wrapped__() & needed == known
