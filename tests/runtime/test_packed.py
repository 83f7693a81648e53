"""Products of our kernels are close to float64 for any size and strides; unpacked weights are bit-identical."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.runtime import panels
from latentdiff.runtime.packed import PackedConv2d, PackedLinear, unpack
from latentdiff.runtime.panels import Order, convolution, from_panels, linear, order_of, to_gated_panels, to_panels
from tests.runtime.packed_checks import check_stays_in_panels, error
from tests.runtime.variants import on_variants

pytestmark = [on_variants("amx"), pytest.mark.usefixtures("variant")]
ROUNDING = 2.0**-8  # of the result to bfloat16, half of it on the average


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("shape", [(32, 64), (96, 32, 1, 1), (64, 96, 3, 3)])
def test_unpacking_panels_recovers_the_weights(shape: tuple[int, ...]) -> None:
    weight = draw(*shape)
    assert torch.equal(from_panels(to_panels(weight), shape), weight)
    if len(shape) == 2:
        assert torch.equal(from_panels(to_gated_panels(weight), shape), weight)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 32, 32), (17, 64, 96), (77, 768, 320), (300, 2592, 64)])
@pytest.mark.parametrize("more", [False, True])
def test_linear(rows: int, depth: int, columns: int, more: bool) -> None:
    x, weight = draw(rows, depth), draw(columns, depth, seed=1) / depth**0.5
    bias, residual = (draw(columns, seed=2), draw(rows, columns, seed=3)) if more else (None, None)
    wanted = F.linear(x.double(), weight.double(), bias.double() if more else None)
    wanted = wanted + residual.double() if residual is not None else wanted
    assert error(linear(x, to_panels(weight), bias, residual), wanted) < ROUNDING / 2


@pytest.mark.parametrize("size", [(1, 4, 4), (3, 5, 7), (2, 16, 16), (1, 3, 40), (2, 33, 20), (1, 70, 61)])
@pytest.mark.parametrize(("depth", "columns", "side"), [(32, 64, 3), (384, 32, 3), (64, 32, 1)])
@pytest.mark.parametrize("more", [False, True])
def test_convolution(size: tuple[int, int, int], depth: int, columns: int, side: int, more: bool) -> None:
    batch, height, width = size
    x = draw(batch, depth, height, width).contiguous(memory_format=torch.channels_last)
    weight = draw(columns, depth, side, side, seed=1) / (depth * side**2) ** 0.5
    bias, residual = (draw(columns, seed=2), draw(batch, columns, height, width, seed=3)) if more else (None, None)
    wanted = F.conv2d(x.double(), weight.double(), bias.double() if more else None, padding=side // 2)
    wanted = wanted + residual.double() if residual is not None else wanted
    found = convolution(x, to_panels(weight), bias, residual)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, wanted) < ROUNDING / 2


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 3), (1, 1, 200), (3, 200, 1)])
def test_a_convolution_of_maps_smaller_than_a_tile(size: tuple[int, int, int]) -> None:
    batch, height, width = size
    x, weight = draw(batch, 32, height, width), draw(64, 32, 3, 3, seed=1) / 17
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    assert error(convolution(x, to_panels(weight), None, None), wanted) < ROUNDING / 2


@pytest.mark.parametrize("size", [(24, 20), (8, 8)])  # of the smaller ones, alone few rows and together many
def test_an_image_is_bit_identical_in_any_batch(size: tuple[int, int]) -> None:
    x, weight, bias = draw(3, 384, *size), to_panels(draw(96, 384, 3, 3, seed=1)), draw(96, seed=2)
    together = convolution(x, weight, bias, None)
    assert torch.equal(together, torch.cat([convolution(one[None], weight, bias, None) for one in x]))


@pytest.mark.parametrize("size", [(1, 5, 7), (2, 33, 20)])
def test_more_threads_than_blocks_share_the_columns(size: tuple[int, int, int]) -> None:
    batch, height, width = size
    x, weight = draw(batch, 64, height, width), to_panels(draw(160, 64, 3, 3, seed=1))
    threads, alone = torch.get_num_threads(), convolution(x, weight, None, None)
    try:
        torch.set_num_threads(5)
        assert torch.equal(convolution(x, weight, None, None), alone)
    finally:
        torch.set_num_threads(threads)


def test_rows_with_any_strides_are_read_correctly() -> None:
    x, weight = draw(2, 64, 8, 6), to_panels(draw(32, 64, 3, 3, seed=1))
    assert torch.equal(convolution(x, weight, None, None), convolution(x.clone(), weight, None, None))
    flipped = x.transpose(2, 3)
    assert torch.equal(convolution(flipped, weight, None, None), convolution(flipped.contiguous(), weight, None, None))
    rows, weight = draw(64, 40).t(), to_panels(draw(32, 64, seed=1))
    assert torch.equal(linear(rows, weight, None, None), linear(rows.contiguous(), weight, None, None))


@pytest.mark.parametrize("depth", [64, 640, 1280])
def test_a_row_is_bit_identical_in_any_batch(depth: int) -> None:
    x, residual, bias = draw(2100, depth), draw(2100, 96, seed=3), draw(96, seed=2)
    weight = to_panels(draw(96, depth, seed=1))
    together = linear(x, weight, bias, residual)
    for rows in (slice(0, 1), slice(5, 14), slice(100, 177), slice(1000, 2100)):
        assert torch.equal(linear(x[rows], weight, bias, residual[rows]), together[rows])


@pytest.mark.parametrize("rows", [40, 2100])
def test_any_number_of_threads_computes_the_same(rows: int) -> None:
    x, weight, threads = draw(rows, 64), to_panels(draw(160, 64, seed=1)), torch.get_num_threads()
    alone = linear(x, weight, None, None)
    try:
        for count in (1, 5, 7):
            torch.set_num_threads(count)
            assert torch.equal(linear(x, weight, None, None), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layer", [nn.Linear(64, 32), nn.Conv2d(64, 32, 1)])
def test_a_layer_stays_in_panels_for_few_rows_and_for_many(layer: nn.Linear | nn.Conv2d) -> None:
    check_stays_in_panels(copy.deepcopy(layer).bfloat16(), draw, ROUNDING)


def test_a_3x3_convolution_stays_in_panels_for_few_pixels_and_for_many() -> None:
    plain = nn.Conv2d(64, 32, 3, padding=1).bfloat16().requires_grad_(False)
    layer: Any = copy.deepcopy(plain)
    layer.__class__ = PackedConv2d
    for x in (draw(1, 64, 8, 8), draw(2, 64, 48, 40), draw(1, 64, 8, 8)):
        residual = draw(len(x), 32, *x.shape[2:], seed=1)
        wanted = residual.double() + copy.deepcopy(plain).double()(x.double())
        assert error(layer.add_to(residual, x), wanted) < ROUNDING
        assert order_of(layer.weight) is Order.PANELS
    unpack(layer)
    assert torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(64, 40), nn.Linear(40, 64), nn.Conv2d(64, 64, 3, 2, 1), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 5)],
)
def test_layers_that_the_kernel_does_not_support_use_onednn(layer: nn.Module) -> None:
    packed: Any = copy.deepcopy(layer).bfloat16().requires_grad_(False)
    packed.__class__ = PackedConv2d if isinstance(layer, nn.Conv2d) else PackedLinear
    x = draw(1, 64, 8, 8) if isinstance(layer, nn.Conv2d) else draw(64, packed.in_features)
    packed(x)
    assert order_of(packed.weight) is Order.ONEDNN


def test_without_the_kernel_every_layer_uses_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "provides", lambda kernel: False)
    layer: Any = nn.Linear(64, 32).bfloat16().requires_grad_(False)
    layer.__class__ = PackedLinear
    layer(draw(48, 64))
    assert order_of(layer.weight) is Order.ONEDNN


def test_mismatched_shapes_and_dtypes_are_errors() -> None:
    weight, x = to_panels(draw(32, 64)), draw(48, 64)
    for wrong in (x[:, :32], x.float()):
        with pytest.raises(ValueError, match=r"does not fit weights in torch\.bfloat16 of depth 64"):
            linear(wrong, weight, None, None)
    for residual in (draw(47, 32), torch.zeros(48, 32)):
        with pytest.raises(ValueError, match="residual"):
            linear(x, weight, None, residual)
    with pytest.raises(ValueError, match="does not fit"):
        convolution(draw(1, 32, 8, 8), to_panels(draw(32, 64, 3, 3)), None, None)


def test_an_empty_batch_stays_empty() -> None:
    layer: Any = nn.Conv2d(64, 32, 3, padding=1).bfloat16().requires_grad_(False)
    layer.__class__ = PackedConv2d
    assert layer(draw(0, 64, 8, 8)).shape == (0, 32, 8, 8)
