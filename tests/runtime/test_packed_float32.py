"""Float32 layers in panels, on every variant: close to float64, bit-identical in any batch, and unpacked to the bit."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.models.attention import GEGLU
from latentdiff.runtime.packed import PackedConv2d, PackedLinear, unpack
from latentdiff.runtime.panels import (
    Order,
    convolution,
    from_panels,
    gated_linear,
    linear,
    order_of,
    to_gated_panels,
    to_panels,
)
from tests.runtime.packed_checks import check_packs_halves_together, check_stays_in_panels, error
from tests.runtime.variants import on_variants

pytestmark = [on_variants(), pytest.mark.usefixtures("variant")]
ROUNDING = 2e-6  # relative, in L2 norm


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(32, 7), (96, 33, 1, 1), (64, 40, 3, 3)])
def test_unpacking_panels_recovers_the_weights(shape: tuple[int, ...]) -> None:
    weight = draw(*shape)
    assert torch.equal(from_panels(to_panels(weight), shape), weight)
    if len(shape) == 2:
        assert torch.equal(from_panels(to_gated_panels(weight), shape), weight)


@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(1, 1, 32), (17, 63, 96), (77, 768, 320), (300, 1024, 64), (100, 3072, 32)]
)
@pytest.mark.parametrize("more", [False, True])
def test_linear(rows: int, depth: int, columns: int, more: bool) -> None:
    x, weight = draw(rows, depth), draw(columns, depth, seed=1) / depth**0.5
    bias, residual = (draw(columns, seed=2), draw(rows, columns, seed=3)) if more else (None, None)
    wanted = F.linear(x.double(), weight.double(), bias.double() if more else None)
    wanted = wanted + residual.double() if residual is not None else wanted
    assert error(linear(x, to_panels(weight), bias, residual), wanted) < ROUNDING


@pytest.mark.parametrize(("rows", "depth", "width"), [(3, 32, 640), (17, 65, 48), (200, 1024, 80)])
@pytest.mark.parametrize("more", [False, True])
def test_gated_linear(rows: int, depth: int, width: int, more: bool) -> None:
    x, weight = draw(rows, depth), draw(2 * width, depth, seed=1) / depth**0.5
    bias = draw(2 * width, seed=2) if more else None
    value, gate = F.linear(x.double(), weight.double(), bias.double() if more else None).chunk(2, dim=-1)
    assert error(gated_linear(x, to_gated_panels(weight), bias), value * F.gelu(gate)) < ROUNDING


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 4, 4), (3, 5, 6), (5, 2, 9), (40, 4, 8), (1, 1, 30)])
@pytest.mark.parametrize(("depth", "columns"), [(3, 32), (384, 64)])
@pytest.mark.parametrize("more", [False, True])
def test_a_3x3_convolution_of_few_pixels(size: tuple[int, int, int], depth: int, columns: int, more: bool) -> None:
    batch, height, width = size
    x, weight = draw(batch, depth, height, width), draw(columns, depth, 3, 3, seed=1) / (3 * depth**0.5)
    bias, residual = (draw(columns, seed=2), draw(batch, columns, height, width, seed=3)) if more else (None, None)
    wanted = F.conv2d(x.double(), weight.double(), bias.double() if more else None, padding=1)
    wanted = wanted + residual.double() if residual is not None else wanted
    found = convolution(x, to_panels(weight), bias, residual)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, wanted) < ROUNDING


@pytest.mark.parametrize("depth", [64, 640, 1024])
@pytest.mark.parametrize("gated", [False, True])
def test_a_row_is_bit_identical_in_any_batch_and_with_any_number_of_threads(depth: int, gated: bool) -> None:
    x, bias, weight = draw(2100, depth), draw(96, seed=2), draw(96, depth, seed=1)
    panels, threads = (to_gated_panels if gated else to_panels)(weight), torch.get_num_threads()

    def compute(rows: slice) -> Tensor:
        return gated_linear(x[rows], panels, bias) if gated else linear(x[rows], panels, bias, None)

    together = compute(slice(None))
    try:
        for count, rows in enumerate((slice(0, 1), slice(5, 14), slice(24, 64), slice(100, 177), slice(1000, 2100)), 1):
            torch.set_num_threads(count)
            assert torch.equal(compute(rows), together[rows])
    finally:
        torch.set_num_threads(threads)


def test_an_image_is_bit_identical_in_any_batch() -> None:
    x, weight, bias = draw(70, 96, 4, 5), to_panels(draw(64, 96, 3, 3, seed=1)), draw(64, seed=2)
    together = convolution(x, weight, bias, None)
    assert torch.equal(together, torch.cat([convolution(part, weight, bias, None) for part in x.split(3)]))


@pytest.mark.parametrize("layer", [nn.Linear(24, 64), nn.Conv2d(24, 64, 1)])
def test_a_layer_is_in_panels_for_few_rows_and_for_many(layer: nn.Linear | nn.Conv2d) -> None:
    check_stays_in_panels(layer, draw, ROUNDING)


def test_a_3x3_convolution_computes_the_same_whatever_size_it_was_called_on_before() -> None:
    plain = nn.Conv2d(32, 64, 3, padding=1).requires_grad_(False)
    layer: Any = copy.deepcopy(plain)
    layer.__class__ = PackedConv2d
    for batch, side in [(9, 4), (1, 16), (1, 8), (1, 4), (2, 16)]:
        x, residual = draw(batch, 32, side, side), draw(batch, 64, side, side, seed=1)
        x, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual))
        wanted = copy.deepcopy(plain).double()(x.double())
        assert error(layer(x), wanted) < 2 * ROUNDING
        assert error(layer.add_to(residual, x), residual.double() + wanted) < 2 * ROUNDING
        assert order_of(layer.weight) is Order.PANELS
    unpack(layer)
    assert torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_layer_packs_its_halves_together_and_restores_them(bias: bool) -> None:
    plain: Any = GEGLU(24, 48)
    plain.proj.bias = plain.proj.bias if bias else None
    check_packs_halves_together(plain, draw, ROUNDING)


def test_gelu_is_accurate_over_its_whole_range() -> None:
    gates = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([-1e30, -200.0, 200.0, 1e30])])
    weight = torch.zeros(32, 2)
    weight[:16, 1], weight[16:, 0] = 1, 1
    x = torch.stack([gates, torch.ones_like(gates)], 1)
    found, wanted = gated_linear(x, to_gated_panels(weight), None).double(), F.gelu(gates.double())[:, None]
    assert ((found - wanted).abs() <= 1e-6 * wanted.abs().clamp(min=1)).all()
    x[0, 0], x[1, 0] = torch.nan, torch.inf
    found = gated_linear(x, to_gated_panels(weight), None)
    assert found[0].isnan().all() and not found[1].isfinite().any() and found[2:].isfinite().all()


def test_mismatched_shapes_and_dtypes_are_errors() -> None:
    weight, x = to_panels(draw(32, 64)), draw(48, 64)
    for wrong in (x[:, :32], x.bfloat16()):
        with pytest.raises(ValueError, match=r"does not fit weights in torch\.float32 of depth 64"):
            linear(wrong, weight, None, None)
    for residual in (draw(47, 32), torch.zeros(48, 32, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="residual"):
            linear(x, weight, None, residual)
    with pytest.raises(ValueError, match="does not fit"):
        convolution(draw(1, 32, 4, 4), to_panels(draw(32, 64, 3, 3)), None, None)


def test_an_empty_batch_stays_empty() -> None:
    layer: Any = nn.Linear(24, 64).requires_grad_(False)
    layer.__class__ = PackedLinear
    assert layer(draw(0, 24)).shape == (0, 64)
    layer = nn.Conv2d(24, 64, 3, padding=1).requires_grad_(False)
    layer.__class__ = PackedConv2d
    assert layer(draw(0, 24, 4, 4)).shape == (0, 64, 4, 4)
