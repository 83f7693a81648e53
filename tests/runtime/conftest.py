"""A fixture that runs a test with every kernel variant that this machine can execute."""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from latentdiff.runtime import native
from latentdiff.runtime.kernel_build import VARIANTS, compile_variant
from tests.runtime.variants import EMULATED, EMULATIONS, IN_SOFTWARE


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """The kernels of a variant with some of its instructions emulated in software."""

    @cache
    def load(name: str) -> ctypes.CDLL:
        variant = next(v for v in VARIANTS if v.name == name)
        flags = [flag for flag in variant.flags if flag not in IN_SOFTWARE[name].values()]
        header = str(Path(__file__).parent / EMULATIONS[name])
        library = tmp_path_factory.mktemp("kernels") / f"{name}.so"
        compile_variant(replace(variant, flags=(*flags, "-include", header)), ["c++"], library)
        return ctypes.CDLL(str(library))

    return load


@pytest.fixture
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The variant in use during a test; `tests.runtime.variants` lists them."""
    if request.param.endswith(EMULATED):
        name = request.param.removesuffix(EMULATED)
        loaded = native._Loaded(name, request.getfixturevalue("emulated")(name), {})
        monkeypatch.setattr(native, "_load", lambda: loaded)
        yield name
        return
    monkeypatch.setenv(native.SWITCH, request.param)
    native._load.cache_clear()
    if native.kernel_variant() != request.param:
        pytest.fail(f"the variant {request.param} does not load")
    yield request.param
    native._load.cache_clear()
