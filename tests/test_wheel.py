"""The build hook, and a wheel with kernels on a machine without a compiler."""

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("hatchling")
import hatch_build_kernels as hook
from latentdiff.runtime import native
from latentdiff.runtime.kernel_build import VARIANTS
from tests.runtime.variants import HAS_COMPILER

ROOT = Path(__file__).parent.parent


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A substitute for the compiler that writes its arguments to the output."""
    calls: list[tuple[Any, ...]] = []

    def compile_nothing(variant: Any, compiler: list[str], target: Path, zig_target: str | None = None) -> None:
        if variant.name == "avx512":
            raise subprocess.CalledProcessError(1, compiler, stderr="unknown option")
        calls.append((variant.name, compiler, target.suffix, zig_target))
        target.write_text(variant.name)

    real = hook.kernel_build(ROOT)
    monkeypatch.setattr(real, "compile_variant", compile_nothing)
    monkeypatch.setattr(hook, "kernel_build", lambda root: real)
    monkeypatch.setattr(hook.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.delenv(hook.SWITCH, raising=False)
    return calls


def initialize(warnings: list[str]) -> dict[str, Any]:
    app = SimpleNamespace(display_warning=warnings.append)
    build_data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    build: Any = hook.KernelBuildHook(str(ROOT), {}, None, None, "", "wheel", app)  # type: ignore[arg-type]
    build.initialize("standard", build_data)
    return build_data


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these variants are for x86-64")
def test_a_wheel_contains_the_variants_that_the_compiler_supports(
    built: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "some-compiler")
    log: list[str] = []
    build_data = initialize(log)
    assert [name for name, *_ in built] == ["amx", "avx512_bf16", "avx2"] and built[0][1] == ["some-compiler"]
    files = {Path(path).name for path in build_data["force_include"].values()}
    assert files == {f"{name}.so{end}" for name, *_ in built for end in ("", ".sha256")}
    assert not build_data["pure_python"] and build_data["tag"].startswith("py3-none-")
    assert log == ["avx512 is omitted: unknown option"]


def test_without_a_compiler_the_wheel_is_pure(built: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(hook.shutil, "which", lambda name: None)
    log: list[str] = []
    build_data = initialize(log)
    assert build_data == {"force_include": {}, "pure_python": True} and built == []
    assert log == ["no CPU kernels are built: a C++ compiler is missing"]


@pytest.mark.parametrize(
    ("tag", "suffix", "names"),
    [("macosx_11_0_arm64", ".dylib", ["neon_bf16", "neon"]), ("manylinux_2_28_aarch64", ".so", ["neon_bf16", "neon"])],
)
def test_a_wheel_for_another_platform_is_compiled_by_zig(
    tag: str, suffix: str, names: list[str], built: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(hook.SWITCH, tag)
    assert initialize([])["tag"] == f"py3-none-{tag}"
    assert [(name, end, target) for name, _, end, target in built] == [
        (n, suffix, hook.PLATFORMS[tag][0]) for n in names
    ]


def test_an_unknown_platform_is_refused(built: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hook.SWITCH, "manylinux_riscv")
    with pytest.raises(ValueError, match="manylinux_riscv is unknown; known: manylinux_2_28_x86_64"):
        initialize([])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER or not any(not lack for lack in native.variants().values()), reason="no kernels")
def test_a_wheel_runs_its_kernels_without_a_compiler(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "/weights/" not in name]
        archive.extractall(tmp_path / "site", names)
    (tmp_path / "empty").mkdir()
    program = """if True:
        import torch
        from latentdiff.models.attention import attention
        from latentdiff.runtime import native
        from latentdiff.runtime.native_layers import fast_attention
        q, k, v = torch.randn(3, 2, 50, 80)
        assert torch.allclose(fast_attention(q, k, v, 2), attention(q, k, v, 2), atol=1e-5)
        print(native.kernel_variant())
    """
    cache = tmp_path / "cache"
    places = {"PATH": str(tmp_path / "empty"), "PYTHONPATH": str(tmp_path / "site"), "XDG_CACHE_HOME": str(cache)}
    environment = {name: value for name, value in os.environ.items() if name != native.SWITCH} | places
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    best = next(v.name for v in VARIANTS if native.variants().get(v.name) == ())
    assert done.stdout.strip() == best and not cache.exists()
