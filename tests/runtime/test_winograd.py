"""Winograd's convolution is close to float64 for any size, on every variant, and prepared layers use it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.runtime import panels
from latentdiff.runtime.native import SUFFIX, call, provides
from latentdiff.runtime.packed import PackedConv2d, unpack
from latentdiff.runtime.panels import Order, convolution, has_convolution, order_of, to_panels
from tests.runtime.variants import on_variants

pytestmark = [on_variants(), pytest.mark.usefixtures("variant")]
SIZES = [(1, 4, 4), (2, 1, 3), (3, 9, 13), (1, 17, 64), (2, 40, 33)]
ROUNDED = {torch.float32: 3e-6, torch.bfloat16: 0.0018}  # the latter is that of rounding exact sums


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use it for every size and dtype."""
    monkeypatch.setattr(panels, "convolution_kernel", lambda dtype, *sizes: f"winograd_{SUFFIX[dtype]}")


@pytest.mark.usefixtures("only")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("depth", "columns"), [(32, 64), (96, 32), (320, 160)])
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("dtype", ROUNDED)
def test_it_equals_a_convolution_in_float64(
    size: tuple[int, int, int], depth: int, columns: int, more: bool, dtype: torch.dtype
) -> None:
    batch, height, width = size
    x = draw(batch, depth, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (draw(columns, depth, 3, 3, seed=1) / (9 * depth) ** 0.5).to(dtype)
    bias, residual = draw(columns, seed=2).to(dtype), draw(batch, columns, height, width, seed=3).to(dtype)
    wanted = F.conv2d(x.double(), weight.double(), bias.double() if more else None, padding=1)
    wanted = wanted + residual.double() if more else wanted
    found = convolution(x, to_panels(weight), bias if more else None, residual if more else None)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, wanted) < ROUNDED[dtype]


@pytest.mark.usefixtures("only")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ROUNDED)
def test_values_that_are_not_finite_stay_so(value: float, dtype: torch.dtype) -> None:
    x = torch.full((1, 32, 4, 4), value, dtype=dtype)
    assert not convolution(x, to_panels(draw(32, 32, 3, 3).to(dtype)), None, None).isfinite().any()


@pytest.mark.usefixtures("only")
@pytest.mark.parametrize("dtype", ROUNDED)
def test_an_image_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(dtype: torch.dtype) -> None:
    x, weight = draw(5, 160, 20, 24).to(dtype), to_panels(draw(64, 160, 3, 3, seed=1).to(dtype))
    together, threads = convolution(x, weight, None, None), torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        assert torch.equal(together, torch.cat([convolution(part, weight, None, None) for part in x.split(1)]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", ROUNDED)
def test_a_prepared_layer_uses_it_for_large_maps_and_keeps_its_panels(
    monkeypatch: pytest.MonkeyPatch, residual: bool, dtype: torch.dtype
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(panels, "call", lambda name, *rest: calls.append(name) or call(name, *rest))
    plain = nn.Conv2d(64, 32, 3, padding=1).to(dtype).requires_grad_(False)
    layer: Any = copy.deepcopy(plain)
    layer.__class__ = PackedConv2d
    for side in (8, 24, 8, 40):
        x, added = draw(2, 64, side, side).to(dtype), draw(2, 32, side, side, seed=1).to(dtype)
        found = layer.add_to(added.contiguous(memory_format=torch.channels_last), x) if residual else layer(x)
        wanted = copy.deepcopy(plain).double()(x.double()) + added.double() * residual
        assert error(found, wanted) < 2 * ROUNDED[dtype]
        assert order_of(layer.weight) is Order.PANELS
    if not provides(f"large_convolution_{SUFFIX[dtype]}"):
        assert calls == 4 * [f"winograd_{SUFFIX[dtype]}"]
    unpack(layer)
    assert torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("shape", [(32, 4, 3, 3), (48, 32, 3, 3), (4, 320, 3, 3)])
def test_channels_that_do_not_fill_vectors_are_left_out(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    lanes = panels.layout(dtype).lanes
    fits = shape[0] % (2 * lanes) == 0 and shape[1] % (32 if dtype == torch.bfloat16 else lanes) == 0
    assert has_convolution(shape, dtype, 1, 4096) is fits
    assert has_convolution((64, 32, 3, 3), dtype, 1, 4096)
