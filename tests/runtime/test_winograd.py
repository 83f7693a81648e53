"""Winograd's convolution is close to float64 for any size, and a prepared layer uses it for large maps in float32."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.runtime import winograd as module
from latentdiff.runtime.native import call
from latentdiff.runtime.optimize import prepare, restore
from latentdiff.runtime.packed import PackedConv2d
from latentdiff.runtime.winograd import suits_winograd, transform, winograd
from tests.runtime.variants import on_variants

pytestmark = [on_variants(), pytest.mark.usefixtures("variant")]
SIZES = [(1, 4, 4), (2, 1, 3), (3, 9, 13), (1, 17, 64), (2, 40, 33)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("depth", "columns"), [(32, 64), (96, 32), (320, 160)])
@pytest.mark.parametrize("more", [False, True])
def test_it_equals_a_convolution_in_float64(size: tuple[int, int, int], depth: int, columns: int, more: bool) -> None:
    batch, height, width = size
    x = draw(batch, depth, height, width).contiguous(memory_format=torch.channels_last)
    weight, bias = draw(columns, depth, 3, 3, seed=1) / (9 * depth) ** 0.5, draw(columns, seed=2)
    residual = draw(batch, columns, height, width, seed=3)
    wanted = F.conv2d(x.double(), weight.double(), bias.double() if more else None, padding=1)
    wanted = wanted + residual.double() if more else wanted
    found = winograd(x, transform(weight), bias if more else None, residual if more else None)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, wanted) < 3e-6


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    x, transformed = draw(5, 32, 20, 24), transform(draw(64, 32, 3, 3, seed=1))
    together = winograd(x, transformed, None, None)
    assert torch.equal(together, torch.cat([winograd(part, transformed, None, None) for part in x.split(1)]))


def test_shapes_that_do_not_fit_raise() -> None:
    transformed = transform(draw(64, 32, 3, 3))
    with pytest.raises(ValueError, match="depth 32"):
        winograd(draw(1, 64, 8, 8), transformed, None, None)
    with pytest.raises(ValueError, match="64 columns"):
        winograd(draw(1, 32, 8, 8), transformed, None, draw(1, 32, 8, 8))


@pytest.mark.parametrize("residual", [False, True])
def test_a_prepared_layer_uses_it_for_large_maps_only(monkeypatch: pytest.MonkeyPatch, residual: bool) -> None:
    calls: list[list[int]] = []
    monkeypatch.setattr(module, "call", lambda name, *rest: calls.append(list(rest[:3])) or call(name, *rest))
    layer = nn.Conv2d(64, 32, 3, padding=1)
    model = nn.Sequential(copy.deepcopy(layer))
    prepare(model)
    fast = model[0]
    assert isinstance(fast, PackedConv2d)
    for side in (8, 24, 8, 32):
        x, added = draw(2, 64, side, side), draw(2, 32, side, side, seed=1) if residual else None
        with torch.no_grad():
            found = fast(x) if added is None else fast.add_to(added.contiguous(memory_format=torch.channels_last), x)
            wanted = layer(x) if added is None else layer(x) + added
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert calls == [[32, 64, calls[0][2]], [2, 24, 24], [2, 32, 32]]  # the weights once
    restore(model)
    assert type(model[0]) is nn.Conv2d and torch.equal(model[0].weight, layer.weight)
    assert getattr(model[0], "transformed", None) is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 3, padding=0),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(4, 32, 3, padding=1),
        nn.Conv2d(32, 48, 3, padding=1),
        nn.Conv2d(1280, 640, 3, padding=1, device="meta"),
    ],
)
def test_other_layers_are_left_out(layer: nn.Conv2d) -> None:
    x = torch.empty(1, layer.in_channels, 64, 64, device="meta")
    assert not suits_winograd(layer, x)
    fitting = nn.Conv2d(32, 32, 3, padding=1)
    assert suits_winograd(fitting, torch.empty(1, 32, 16, 16))
    assert not suits_winograd(fitting, torch.empty(1, 32, 15, 16))
    assert not suits_winograd(fitting, torch.empty(1, 32, 64, 64, dtype=torch.bfloat16))
