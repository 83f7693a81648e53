"""Frozen convolutions compute the outputs and the gradients of plain ones, on every variant of the kernels."""

import copy

import pytest
import torch
from torch import Tensor, nn

from latentdiff.runtime import training_convolution as module
from latentdiff.runtime.training_convolution import FrozenConv2d, freeze_convolutions
from tests.runtime.variants import on_variants

pytestmark = [on_variants(), pytest.mark.usefixtures("variant")]


def frozen(*arguments: int, **options: int) -> tuple[nn.Conv2d, FrozenConv2d]:
    """A plain layer and a frozen copy of it."""
    torch.manual_seed(0)
    plain = nn.Conv2d(*arguments, **options).requires_grad_(False)
    fast = copy.deepcopy(plain)
    freeze_convolutions(fast)
    assert isinstance(fast, FrozenConv2d)
    return plain, fast


def difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm())


@pytest.mark.parametrize("size", [(1, 4, 4), (3, 5, 9), (2, 16, 16)])
@pytest.mark.parametrize(("depth", "columns"), [(32, 64), (96, 32)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradient_are_those_of_float64(
    size: tuple[int, int, int], depth: int, columns: int, layout: torch.memory_format
) -> None:
    plain, fast = frozen(depth, columns, 3, padding=1)
    batch, height, width = size
    x = torch.randn(batch, depth, height, width).to(memory_format=layout).requires_grad_(True)
    exact = x.detach().double().requires_grad_(True)
    upstream = torch.randn(batch, columns, height, width)
    found, wanted = fast(x), plain.double()(exact)
    found.backward(upstream)
    wanted.backward(upstream.double())
    assert x.grad is not None and exact.grad is not None
    assert difference(found, wanted) < 3e-6 and difference(x.grad, exact.grad) < 3e-6
    assert fast.panels is not None


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((32, 64, 3), {}), ((32, 64, 1), {}), ((32, 64, 3), {"padding": 1, "stride": 2}), ((8, 64, 3), {"padding": 1})],
)
def test_other_convolutions_are_computed_as_before(arguments: tuple[int, ...], options: dict[str, int]) -> None:
    plain, fast = frozen(*arguments, **options)
    x = torch.randn(2, arguments[0], 6, 6)
    assert torch.equal(fast(x), plain(x)) and fast.panels is None


def test_other_precisions_are_computed_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "convolution", None)
    plain, fast = frozen(32, 64, 3, padding=1)
    x = torch.randn(2, 32, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), plain(x))
    assert torch.equal(fast.bfloat16()(x.bfloat16()), plain.bfloat16()(x.bfloat16()))


def test_a_convolution_that_trains_stays_plain() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False))
    freeze_convolutions(model)
    assert [type(layer) for layer in model] == [nn.Conv2d, FrozenConv2d]
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
