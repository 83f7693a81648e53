"""Which variants of the kernels can be tested here."""

import platform
import shutil

import pytest

from latentdiff.runtime import native
from latentdiff.runtime.kernel_build import VARIANTS, library_name, variants_of

EMULATED = " (emulated)"  # by these headers, on processors with the other instructions that these kernels use
EMULATIONS = {"amx": "amx_emulation.h", "avx512_bf16": "bf16_emulation.h"}
IN_SOFTWARE = {  # capabilities that the headers replace, with the compiler's flags for them
    "amx": {"amx_tile": "-mamx-tile", "amx_bf16": "-mamx-bf16"},
    "avx512_bf16": {"avx512_bf16": "-mavx512bf16"},
}
HAS_COMPILER = shutil.which("c++") is not None


def testable() -> list[str]:
    """Variants that run here; without a compiler, only the installed ones."""
    lacking = native.variants()
    runnable = [v for v in variants_of(platform.machine()) if not lacking[v.name]]
    found = [v.name for v in runnable if HAS_COMPILER or (native.INSTALLED / library_name(v)).exists()]
    for name, emulated in IN_SOFTWARE.items():
        needs = set(lacking.get(name, ()))
        if HAS_COMPILER and needs and needs <= set(emulated):
            found.append(name + EMULATED)
    return found


def untestable() -> dict[str, str]:
    """The variants that cannot be tested here, with the reasons."""
    found, lacking = testable(), native.variants()
    reasons = {}
    for variant in VARIANTS:
        if variant.name not in lacking:
            emulated = "; pytest -m slow runs it under qemu" if variant.machine == "aarch64" else ""
            reasons[variant.name] = f"for {variant.machine}{emulated}"
        elif lacking[variant.name]:
            emulated = ", emulated instead" if variant.name + EMULATED in found else ""
            reasons[variant.name] = f"no {lacking[variant.name][0]}{emulated}"
        elif variant.name not in found:
            reasons[variant.name] = "no compiler"
    return reasons


TESTABLE = testable()


def on_variants(*names: str) -> pytest.MarkDecorator:
    """Parametrise a test over the named variants that can be tested or emulated here, by default over all variants."""
    chosen = [name for name in TESTABLE if not names or name.removesuffix(EMULATED) in names]
    return pytest.mark.parametrize("variant", chosen, indirect=True)
