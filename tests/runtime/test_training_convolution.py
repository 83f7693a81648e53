"""Convolutions in training compute the outputs and the gradients of plain ones, on every variant of the kernels."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentdiff.runtime import training_convolution as module
from latentdiff.runtime.native import provides
from latentdiff.runtime.panels import convolution
from latentdiff.runtime.training_convolution import TrainingConv2d, use_native_convolutions, weight_gradient
from tests.runtime.variants import on_variants

pytestmark = [on_variants(), pytest.mark.usefixtures("variant")]
BFLOAT16_ERROR = 0.01


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of the convolutions that our kernels compute."""
    found: list[torch.dtype] = []
    monkeypatch.setattr(module, "convolution", lambda x, *rest: found.append(x.dtype) or convolution(x, *rest))
    return found


def replaced(*arguments: int, trains: bool = False, **options: int) -> tuple[nn.Conv2d, TrainingConv2d]:
    """A plain layer and a replaced copy of it."""
    torch.manual_seed(0)
    plain = nn.Conv2d(*arguments, **options).requires_grad_(trains)
    fast = copy.deepcopy(plain)
    use_native_convolutions(fast)
    assert isinstance(fast, TrainingConv2d)
    return plain, fast


def difference(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None and wanted is not None
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm())


@pytest.mark.parametrize("size", [(1, 4, 4), (3, 5, 9), (2, 16, 16)])
@pytest.mark.parametrize(("depth", "columns"), [(32, 64), (96, 32)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("trains", [False, True])
def test_output_and_gradients_are_those_of_float64(
    size: tuple[int, int, int], depth: int, columns: int, layout: torch.memory_format, trains: bool,
    calls: list[torch.dtype],
) -> None:  # fmt: skip
    plain, fast = replaced(depth, columns, 3, padding=1, trains=trains)
    batch, height, width = size
    x = torch.randn(batch, depth, height, width).to(memory_format=layout).requires_grad_(True)
    exact = x.detach().double().requires_grad_(True)
    upstream = torch.randn(batch, columns, height, width)
    found, wanted = fast(x), plain.double()(exact)
    found.backward(upstream)
    wanted.backward(upstream.double())
    assert difference(found, wanted) < 3e-6 and difference(x.grad, exact.grad) < 3e-6
    if trains:
        assert fast.bias is not None and plain.bias is not None
        assert difference(fast.weight.grad, plain.weight.grad) < 3e-6
        assert difference(fast.bias.grad, plain.bias.grad) < 3e-6
    assert calls == [torch.float32, torch.float32] and (fast.panels is None) is trains


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 9), (7, 16, 20)])
@pytest.mark.parametrize(("depth", "columns"), [(32, 64), (96, 32), (160, 192)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_weight_is_that_of_float64(
    size: tuple[int, int, int], depth: int, columns: int, dtype: torch.dtype
) -> None:
    batch, height, width = size
    x, grad = torch.randn(batch, depth, height, width).to(dtype), torch.randn(batch, columns, height, width).to(dtype)
    wanted = torch.nn.grad.conv2d_weight(x.double(), (columns, depth, 3, 3), grad.double(), padding=1)
    found, threads = weight_gradient(x, grad), torch.get_num_threads()
    assert found.dtype == torch.float32 and difference(found, wanted) < 3e-6
    try:
        torch.set_num_threads(3)
        assert difference(weight_gradient(x, grad), wanted) < 3e-6
    finally:
        torch.set_num_threads(threads)


def test_maps_that_do_not_fit_raise() -> None:
    x = torch.randn(1, 32, 4, 4)
    for grad in (torch.randn(1, 32, 4, 5), torch.randn(1, 32, 4, 4).bfloat16()):
        with pytest.raises(ValueError, match="does not fit x"):
            weight_gradient(x, grad)


def test_very_many_weights_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WEIGHTS", 32 * 32 - 1)
    monkeypatch.setattr(module, "weight_gradient", None)
    plain, fast = replaced(32, 32, 3, padding=1, trains=True)
    x = torch.randn(2, 32, 8, 8)
    for layer, values in ((fast, x), (plain.double(), x.double())):
        layer(values).square().sum().backward()
    assert difference(fast.weight.grad, plain.weight.grad) < 3e-6


@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16, None])
def test_under_autocast_it_is_as_close_to_float64_as_a_plain_one(
    frozen: torch.dtype | None, calls: list[torch.dtype]
) -> None:
    plain, fast = replaced(64, 32, 3, padding=1, trains=frozen is None)
    if frozen is not None:
        fast = fast.to(frozen)
    x = torch.randn(2, 64, 12, 12, requires_grad=True)
    exact, upstream = x.detach().double().requires_grad_(True), torch.randn(2, 32, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        found = fast(x)
    assert found.dtype == torch.bfloat16
    found.backward(upstream.bfloat16())
    wanted = plain.double()(exact)
    wanted.backward(upstream.double())
    assert difference(found, wanted) < BFLOAT16_ERROR and difference(x.grad, exact.grad) < BFLOAT16_ERROR
    if frozen is None:
        assert fast.weight.grad is not None and fast.weight.grad.dtype == torch.float32
        assert difference(fast.weight.grad, plain.weight.grad) < BFLOAT16_ERROR
    left_out = frozen is None and provides("large_convolution_bf16")
    assert calls == ([] if left_out else [torch.bfloat16, torch.bfloat16])


def test_a_weight_that_changes_is_packed_again_and_a_frozen_one_is_not(calls: list[torch.dtype]) -> None:
    x = torch.randn(1, 32, 8, 8)
    for trains in (False, True):
        plain, fast = replaced(32, 32, 3, padding=1, trains=trains)
        fast(x)
        kept = fast.panels
        with torch.no_grad():
            for layer in (plain, fast):
                layer.weight.mul_(2 if trains else 1)
        assert difference(fast(x), plain.double()(x.double())) < 3e-6 and fast.panels is kept
    assert len(calls) == 4


def test_gradient_checkpointing_computes_the_same() -> None:
    _, fast = replaced(32, 32, 3, padding=1, trains=True)
    x, gradients = torch.randn(1, 32, 8, 8, requires_grad=True), []
    for recompute in (False, True):
        fast.zero_grad()
        out = checkpoint(fast, x, use_reentrant=False) if recompute else fast(x)
        out.square().sum().backward()
        assert fast.weight.grad is not None
        gradients.append(fast.weight.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((32, 64, 3), {}), ((32, 64, 1), {}), ((32, 64, 3), {"padding": 1, "stride": 2}), ((8, 64, 3), {"padding": 1})],
)
def test_other_convolutions_are_computed_as_before(
    arguments: tuple[int, ...], options: dict[str, int], calls: list[torch.dtype]
) -> None:
    plain, fast = replaced(*arguments, **options)
    x = torch.randn(2, arguments[0], 6, 6)
    assert torch.equal(fast(x), plain(x)) and not calls


def test_names_and_weights_stay() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ConvTranspose2d(32, 32, 3))
    before = model.state_dict()
    use_native_convolutions(model)
    assert [type(layer) for layer in model] == [TrainingConv2d, nn.ConvTranspose2d]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
