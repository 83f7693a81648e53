"""Build hook: adds the CPU kernels to a wheel, one library for each variant of its platform.

They are compiled by $CXX or `c++`. Without a compiler the wheel is a pure one. With LATENTDIFF_WHEEL_PLATFORM, which
`make wheels` sets, they are compiled by Zig's clang for one of PLATFORMS, to be uploaded.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "LATENTDIFF_WHEEL_PLATFORM"
ZIG = "ziglang==0.17.1"
PLATFORMS = {  # the wheel's tag: Zig's target, the machine and sys.platform there
    "manylinux_2_28_x86_64": ("x86_64-linux-gnu.2.28", "x86_64", "linux"),
    "manylinux_2_28_aarch64": ("aarch64-linux-gnu.2.28", "aarch64", "linux"),
    "macosx_11_0_arm64": ("aarch64-macos.11.0", "aarch64", "darwin"),
    "win_amd64": ("x86_64-windows-gnu", "x86_64", "win32"),
}


class KernelBuildHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        return [ZIG] if SWITCH in os.environ else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the libraries to the wheel. Raises ValueError for an unknown platform, CalledProcessError from Zig."""
        if version == "editable":  # compiled at first use
            return
        self.folder = Path(tempfile.mkdtemp(prefix="latentdiff-kernels-"))
        tag, libraries = self._cross_compile() if SWITCH in os.environ else self._compile()
        if not libraries:
            return
        for path in self.folder.iterdir():
            if path.name.removesuffix(".sha256") in libraries:
                build_data["force_include"][str(path)] = f"latentdiff/runtime/kernels/lib/{path.name}"
        build_data["pure_python"], build_data["tag"] = False, f"py3-none-{tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(getattr(self, "folder", ""), ignore_errors=True)

    def _compile(self) -> tuple[str, set[str]]:
        """For this machine; a variant that the compiler does not support is omitted."""
        build, libraries = kernel_build(Path(self.root)), set()
        compiler = os.environ.get("CXX") or shutil.which("c++")
        for variant in build.variants_of(sysconfig.get_platform().rpartition("-")[2]) if compiler else []:
            path = self.folder / build.library_name(variant)
            try:
                build.compile_variant(variant, [compiler], path)
            except (OSError, subprocess.CalledProcessError) as error:
                self.app.display_warning(f"{variant.name} is omitted: {getattr(error, 'stderr', error)}")
                continue
            self._add(build, path, libraries)
        if not libraries:
            self.app.display_warning("no CPU kernels are built: a C++ compiler is missing")
        return sysconfig.get_platform().replace("-", "_").replace(".", "_"), libraries

    def _cross_compile(self) -> tuple[str, set[str]]:
        build, libraries, tag = kernel_build(Path(self.root)), set(), os.environ[SWITCH]
        if tag not in PLATFORMS:
            raise ValueError(f"{SWITCH}={tag} is unknown; known: {', '.join(PLATFORMS)}")
        target, machine, system = PLATFORMS[tag]
        for variant in build.variants_of(machine):
            path = self.folder / build.library_name(variant, system)
            build.compile_variant(variant, [sys.executable, "-m", "ziglang", "c++"], path, target)
            self._add(build, path, libraries)
        return tag, libraries

    @staticmethod
    def _add(build: Any, library: Path, libraries: set[str]) -> None:
        library.with_name(f"{library.name}.sha256").write_text(build.seal(library))
        libraries.add(library.name)


def kernel_build(root: Path) -> Any:
    """latentdiff/runtime/kernel_build.py, without the package around it, which imports torch."""
    path = root / "latentdiff" / "runtime" / "kernel_build.py"
    spec = importlib.util.spec_from_file_location("kernel_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_build"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module
