"""`optimize="compile"`: the same images, a robust cache, and a fallback if compilation fails."""

import os
import time
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from latentdiff import LatentDiffusionPipeline
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime import compile_cache
from latentdiff.runtime.compile_cache import _OPENED, FOLDER, CompileCache, archive_path, open_cache
from latentdiff.runtime.compiled import Compiled, compile_model
from latentdiff.runtime.optimize import restore
from tests.small import small_unet_config

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(FOLDER, "")
    monkeypatch.delenv(FOLDER)
    _OPENED.clear()
    torch.compiler.reset()
    yield
    _OPENED.clear()
    torch.compiler.reset()


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def never(_: nn.Module) -> None:
    raise AssertionError("torch.compile gave up")


def made(folder: Path, **files: bytes) -> CompileCache:
    """An archive that contains these files, and the cache that wrote it."""
    cache = CompileCache(folder / "compiled" / f"torch-{torch.__version__}-x.zip")
    for name, content in files.items():
        (cache.work / name).write_bytes(content)
    cache.save()
    return cache


def test_a_process_finds_the_cache_of_an_earlier_one(tmp_path: Path) -> None:
    first = made(tmp_path, kernel=b"code", graph=b"plan")
    second = CompileCache(first.archive)
    assert second.work != first.work
    assert {path.name: path.read_bytes() for path in second.work.iterdir()} == {"kernel": b"code", "graph": b"plan"}
    before = first.archive.stat().st_mtime_ns
    second.save()
    assert first.archive.stat().st_mtime_ns == before  # nothing was new


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_a_damaged_cache_warns_in_one_line_and_is_rewritten(tmp_path: Path, damage: str) -> None:
    archive = made(tmp_path, kernel=bytes(range(256)) * 40).archive
    whole = archive.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:100] + bytes([whole[100] ^ 255]) + whole[101:]
    archive.write_bytes({"cut": whole[:middle], "flipped": flipped, "text": b"no archive", "empty": b""}[damage])
    with pytest.warns(UserWarning, match="is damaged .* and ignored; it will be rewritten") as caught:
        cache = CompileCache(archive)
    assert len(caught) == 1 and "\n" not in str(caught[0].message) and not any(cache.work.iterdir())
    (cache.work / "kernel").write_bytes(b"new")
    cache.save()
    assert zipfile.ZipFile(archive).testzip() is None


def test_a_cache_of_another_torch_version_warns_in_one_line_and_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "1.0.0+cpu")
    old = made(tmp_path, kernel=b"old").archive
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"torch-1.0.0\+cpu-x.zip was written by another torch version than") as caught:
        cache = CompileCache(old.with_name(f"torch-{torch.__version__}-x.zip"))
    assert len(caught) == 1 and not any(cache.work.iterdir())


def test_a_cache_that_cannot_be_written_warns_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "compiled").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be written .*; the next start compiles again"):
        made(tmp_path, kernel=b"code")


def test_the_cache_belongs_to_a_torch_version_and_a_device_unless_the_user_sets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive_path(CPU)
    assert path.parent == tmp_path / "cache" / "latentdiff" / "compiled"
    assert path.name.startswith(f"torch-{torch.__version__}-cpu-")
    monkeypatch.setattr(compile_cache, "processor", lambda: "another")
    assert archive_path(CPU) != path
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert open_cache(CPU) is None and os.environ[FOLDER] == str(tmp_path)
    _OPENED.clear()
    monkeypatch.setenv(FOLDER, default_cache_dir())  # as torch does by itself
    found = open_cache(CPU)
    assert found is not None and os.environ[FOLDER] == str(found.work)


def test_failed_compilation_warns_in_one_line_and_falls_back() -> None:
    model, x, prepared = Doubled(), torch.ones(3, 4, 5, 6), []
    compile_model(model, prepared.append)
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        torch.no_grad(),
        pytest.warns(UserWarning, match=r"torch.compile failed \(.*continuing with optimize='auto'") as caught,
    ):
        assert torch.equal(model(x), 2 * x)
    ours = [str(one.message) for one in caught if "torch.compile failed" in str(one.message)]  # torch adds its own
    assert len(ours) == 1 and "\n" not in ours[0]
    assert prepared == [model] and "forward" not in vars(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model(x + 1), 2 * (x + 1))


def test_threads_that_fail_at_the_same_time_fall_back_once() -> None:
    from torch._dynamo.exc import TorchDynamoException

    model, x, gate, inside = Doubled(), torch.ones(3), Barrier(2), []

    def prepare(module: nn.Module) -> None:
        inside.append(module)
        time.sleep(0.1)  # the other thread would come in here
        assert inside == [module]

    def fail(*_: Tensor) -> Tensor:
        raise TorchDynamoException("no")

    def call(_: int) -> Tensor:
        gate.wait()
        out: Tensor = model(x)
        return out

    compile_model(model, prepare)
    model.forward.run = fail
    with torch.no_grad(), pytest.warns(UserWarning, match="continuing with") as caught, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(call, range(2)))
    assert all(torch.equal(out, 2 * x) for out in found) and inside == [model]
    assert sum("torch.compile failed" in str(one.message) for one in caught) == 1


def test_restoring_removes_only_the_compiled_call() -> None:
    model = nn.ModuleList([Doubled(), Doubled()])
    compile_model(model[0], never)
    model[1].forward = other = lambda x: x
    assert isinstance(model[0].forward, Compiled)
    restore(model)
    assert "forward" not in vars(model[0]) and model[1].forward is other
    assert list(model.state_dict()) == ["0.factor", "1.factor"]


@pytest.mark.slow
@torch.no_grad()
@config.patch(freezing=True)  # as others in this process may have it
def test_a_compiled_unet_accepts_other_sizes_and_weights_and_the_next_process_reuses_it() -> None:
    plain = UNet2DConditionModel(small_unet_config()).requires_grad_(False)
    unet = UNet2DConditionModel(small_unet_config()).requires_grad_(False)
    unet.load_state_dict(plain.state_dict())
    compile_model(unet, never)
    hidden = torch.randn(2, 5, 32)
    for side in (8, 12):
        arguments = (torch.randn(2, 4, side, side), torch.tensor([7, 901]), Conditioning(hidden))
        torch.testing.assert_close(unet(*arguments), plain(*arguments), rtol=1e-4, atol=1e-5)
    for model in (plain, unet):
        model.conv_in.weight.mul_(3)
    torch.testing.assert_close(unet(*arguments), plain(*arguments), rtol=1e-4, atol=1e-5)

    torch.compiler.reset()
    _OPENED.clear()
    del os.environ[FOLDER]
    restore(unet)
    compile_model(unet, never)  # as a new process would
    from torch._dynamo.utils import counters

    counters.clear()
    unet(*arguments)
    cache = open_cache(CPU)
    assert cache is not None and counters["aot_autograd"]["autograd_cache_hit"] == 1
    before = archive_path(CPU).stat().st_mtime_ns
    cache.save()
    assert archive_path(CPU).stat().st_mtime_ns == before


@pytest.mark.slow
def test_compiled_pictures_are_those_of_the_plain_modules(model_folder: Path, tmp_path: Path) -> None:
    fast, plain = (
        LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float32", optimize=optimize)
        for optimize in ("compile", "off")
    )
    first, second = (
        np.asarray(pipe("a cat face", num_inference_steps=3, seed=1).images[0]).astype(int) for pipe in (fast, plain)
    )
    assert np.abs(first - second).max() <= 1
    assert isinstance(fast.denoiser.forward, Compiled) and archive_path(CPU).exists()
    fast.save_pretrained(tmp_path / "saved")
    assert isinstance(fast.denoiser.forward, Compiled)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@torch.no_grad()
def test_a_recorded_output_survives_the_next_call() -> None:
    device = torch.device("cuda")
    unet = UNet2DConditionModel(small_unet_config()).to(device, torch.bfloat16).requires_grad_(False)
    plain = UNet2DConditionModel(small_unet_config()).to(device, torch.bfloat16)
    plain.load_state_dict(unet.state_dict())
    compile_model(unet, never)
    hidden, times = torch.randn(2, 5, 32, device=device).bfloat16(), torch.full((2,), 500.0, device=device)
    inputs = [torch.randn(2, 4, 8, 8, device=device).bfloat16() for _ in range(4)]
    found = [unet(x, times, Conditioning(hidden)) for x in inputs]
    for x, out in zip(inputs, found, strict=True):
        torch.testing.assert_close(out, plain(x, times, Conditioning(hidden)), rtol=0.05, atol=0.03)
