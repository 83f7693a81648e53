"""A fixture that runs a test with every kernel variant that this machine can execute."""

import ctypes
from collections.abc import Iterator
from dataclasses import replace

import pytest

from latentdiff.runtime import native
from latentdiff.runtime.kernel_build import VARIANTS, compile_variant
from tests.runtime.variants import EMULATED, EMULATION


@pytest.fixture(scope="session")
def emulated_amx(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The AMX kernels with tiles emulated in software."""
    amx = next(v for v in VARIANTS if v.name == "amx")
    flags = (
        *(flag for flag in amx.flags if not flag.startswith("-mamx")),
        "-D__AMX_BF16__",
        "-include",
        str(EMULATION),
    )
    library = tmp_path_factory.mktemp("kernels") / "amx.so"
    compile_variant(replace(amx, flags=flags), ["c++"], library)
    return ctypes.CDLL(str(library))


@pytest.fixture
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The variant in use during a test; `tests.runtime.variants` lists them."""
    if request.param == EMULATED:
        loaded = native._Loaded("amx", request.getfixturevalue("emulated_amx"), {})
        monkeypatch.setattr(native, "_load", lambda: loaded)
        yield "amx"
        return
    monkeypatch.setenv(native.SWITCH, request.param)
    native._load.cache_clear()
    if native.kernel_variant() != request.param:
        pytest.fail(f"the variant {request.param} does not load")
    yield request.param
    native._load.cache_clear()
