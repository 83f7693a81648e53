"""The ARM kernels, compiled with Zig and run under qemu, against float64."""

import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from latentdiff.models.attention import attention
from latentdiff.runtime.kernel_build import FLAGS, KERNELS, variants_of

QEMU = shutil.which("qemu-aarch64")
CPUS = {"neon": "neoverse-n1", "neon_bf16": "max"}  # the first has no bfloat16
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(QEMU is None, reason="qemu-aarch64 is missing: apt-get install qemu-user"),
    pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is missing: pip install ziglang"),
]


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A static executable for each variant."""
    found = {}
    for variant in variants_of("aarch64"):
        found[variant.name] = tmp_path_factory.mktemp("aarch64") / variant.name
        flags = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]
        target = ["-target", "aarch64-linux-musl", f"-mcpu={variant.zig_cpu}", "-nostdlib++", "-static"]
        sources = [Path(__file__).parent / "aarch64_driver.cpp", *sorted(KERNELS.glob("*.cpp"))]
        command = [sys.executable, "-m", "ziglang", "c++", *flags, *target, "-o", found[variant.name], *sources]
        subprocess.run(command, check=True)
    return found


def run(driver: Path, cpu: str, name: str, sizes: tuple[int, ...], *inputs: Tensor) -> Tensor:
    data = b"".join(x.contiguous().view(torch.uint8).numpy().tobytes() for x in inputs)
    command = [str(QEMU), "-cpu", cpu, str(driver), name, *map(str, sizes)]
    done = subprocess.run(command, input=data, check=True, capture_output=True)
    return torch.frombuffer(bytearray(done.stdout), dtype=inputs[0].dtype)


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted.flatten()).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", CPUS)
@pytest.mark.parametrize(("queries", "keys", "dim"), [(1, 1, 8), (50, 77, 40), (33, 300, 64)])
@pytest.mark.parametrize("factor", [1.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention(
    name: str, queries: int, keys: int, dim: int, factor: float, dtype: torch.dtype, drivers: dict[str, Path]
) -> None:
    q, k, v = (torch.randn(2, n, 2 * dim).to(dtype) for n in (queries, keys, keys))
    q = factor * q
    wanted = attention(q.double(), k.double(), v.double(), 2)
    kernel = "attention_bf16" if dtype == torch.bfloat16 else "attention_fp32"
    found = run(drivers[name], CPUS[name], kernel, (2, 2, queries, keys, dim), q, k, v)
    theirs = error(attention(q, k, v, 2).flatten(), wanted)
    assert error(found, wanted) <= max(1.5 * theirs, 4e-4 if dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize("name", CPUS)
def test_geglu(name: str, drivers: dict[str, Path]) -> None:
    x = 3 * torch.randn(7, 2 * 37)
    value, gate = x.double().chunk(2, dim=-1)
    assert error(run(drivers[name], CPUS[name], "geglu_fp32", (7, 37), x), value * F.gelu(gate)) < 1e-6


@pytest.mark.parametrize("name", CPUS)
@pytest.mark.parametrize(("rows", "depth"), [(1, 3), (31, 64), (200, 1024)])
def test_linear(name: str, rows: int, depth: int, drivers: dict[str, Path]) -> None:
    x, weight = torch.randn(rows, depth), torch.randn(48, depth)
    panels = weight.reshape(6, 8, depth).transpose(1, 2)  # of two vectors of four columns
    found = run(drivers[name], CPUS[name], "linear_fp32", (rows, depth, 48), x, panels)
    assert error(found, x.double() @ weight.double().T) < 2e-6


@pytest.mark.parametrize("name", CPUS)
@pytest.mark.parametrize(("size", "depth"), [((1, 3, 5), 4), ((2, 9, 13), 96)])
def test_winograd(name: str, size: tuple[int, int, int], depth: int, drivers: dict[str, Path]) -> None:
    x, weight = torch.randn(*size, depth), torch.randn(24, depth, 3, 3)
    panels = weight.reshape(3, 8, depth, 9).permute(0, 3, 2, 1)
    found = run(drivers[name], CPUS[name], "winograd_fp32", (*size, depth, 24), x, panels)
    wanted = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), padding=1).permute(0, 2, 3, 1)
    assert error(found, wanted.contiguous()) < 3e-6


@pytest.mark.parametrize("name", CPUS)
def test_the_gradient_of_a_weight(name: str, drivers: dict[str, Path]) -> None:
    x, grad = torch.randn(2, 9, 13, 68), torch.randn(2, 9, 13, 24)
    found = run(drivers[name], CPUS[name], "weight_gradient_fp32", (2, 9, 13, 68, 24), x, grad)
    maps = (t.permute(0, 3, 1, 2).double() for t in (x, grad))
    wanted = conv2d_weight(next(maps), (24, 68, 3, 3), next(maps), padding=1).permute(2, 3, 1, 0)
    assert error(found, wanted.contiguous()) < 3e-6


def test_bfloat16_instructions_are_only_for_processors_that_have_them(drivers: dict[str, Path]) -> None:
    assert "bf16" in next(v for v in variants_of("aarch64") if v.name == "neon_bf16").needs
    x = torch.randn(3, 1, 8, 16).bfloat16()
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run(drivers["neon_bf16"], CPUS["neon"], "attention_bf16", (1, 1, 8, 8, 16), *x)
    assert failure.value.returncode == -signal.SIGILL
