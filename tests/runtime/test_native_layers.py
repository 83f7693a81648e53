"""Native kernels against float64, and the fallback for inputs that they do not support."""

import copy

import pytest
import torch
from torch import Tensor, nn

from latentdiff.models.attention import GEGLU
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.layers import GroupNormSiLU
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime.native_layers import NATIVE, use_native_kernels
from tests.runtime.variants import on_variants
from tests.small import small_unet_config

pytestmark = [on_variants(), pytest.mark.usefixtures("variant")]


def with_kernels(model: nn.Module) -> nn.Module:
    fast = nn.Sequential(copy.deepcopy(model))
    use_native_kernels(fast)
    return fast[0]


def layers() -> list[tuple[str, nn.Module, Tensor]]:
    """Layers and their inputs, with channel counts that are multiples of the vector length, and one that is not."""
    found: list[tuple[str, nn.Module, Tensor]] = []
    for channels, groups, side in [(128, 32, 16), (96, 4, 5), (33, 3, 2)]:
        x = (2 * torch.randn(3, channels, side, side) + 1).contiguous(memory_format=torch.channels_last)
        for kind in (nn.GroupNorm, GroupNormSiLU):
            norm = kind(groups, channels)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            found.append((f"{kind.__name__}-{channels}", norm, x))
    found.append(("GEGLU", GEGLU(24, 37), 3 * torch.randn(2, 7, 24)))
    return found


def outputs_and_gradients(model: nn.Module, x: Tensor, weights: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y, [x, *model.parameters()], weights.to(y.dtype))]


def relative_errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    return [((f.double() - w).norm() / w.norm()).item() for f, w in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", range(7))
def test_values_and_gradients_are_as_accurate_as_torchs(index: int, dtype: torch.dtype) -> None:
    torch.manual_seed(index)
    _, model, x = layers()[index]
    model, x = model.to(dtype), x.to(dtype)
    fast = with_kernels(model)
    assert type(fast) is NATIVE[type(model)]
    weights = torch.randn(model(x).shape, dtype=torch.float64)
    wanted = outputs_and_gradients(copy.deepcopy(model).double(), x.double(), weights)
    ours = relative_errors(outputs_and_gradients(fast, x, weights), wanted)
    theirs = relative_errors(outputs_and_gradients(model, x, weights), wanted)
    floor = 3e-7 if dtype == torch.float32 else 2e-3
    assert all(o <= max(1.5 * t, floor) for o, t in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("kind", [nn.GroupNorm, GroupNormSiLU])
def test_the_gradients_of_one_picture_do_not_depend_on_how_many_threads_share_it(kind: type[nn.GroupNorm]) -> None:
    norm, threads = with_kernels(kind(8, 48)), torch.get_num_threads()
    x = torch.randn(1, 48, 6, 8).contiguous(memory_format=torch.channels_last)
    found = []
    try:
        for count in (1, 2, 5):  # 5 does not divide the pixels
            torch.set_num_threads(count)
            found.append(outputs_and_gradients(norm, x, x.cos()))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_spare_tensor_receives_the_output_unless_gradients_are_needed(dtype: torch.dtype) -> None:
    norm = with_kernels(GroupNormSiLU(8, 48).to(dtype))
    x, shift = torch.randn(3, 48, 5, 4, dtype=dtype).contiguous(memory_format=torch.channels_last), torch.randn(3, 48)
    before = x.clone()
    assert norm(x, shift, spare=True).requires_grad and torch.equal(x, before)
    with torch.no_grad():
        wanted = norm(x, shift)
        found = norm(x, shift, spare=True)
    assert torch.equal(found, wanted) and found.data_ptr() == x.data_ptr()


def test_large_and_infinite_values() -> None:
    norm = GroupNormSiLU(1, 4)
    x = torch.tensor([[1e4, -1e4, 3e4, -3e4]])[..., None, None].contiguous(memory_format=torch.channels_last)
    assert torch.allclose(with_kernels(norm)(x), norm(x), atol=1e-5)
    gate = torch.tensor([[1.0, 1.0, 1.0, 1.0, -200.0, -6.0, 6.0, 200.0]])
    geglu = GEGLU(8, 4)
    nn.init.eye_(geglu.proj.weight)
    nn.init.zeros_(geglu.proj.bias)
    assert torch.allclose(with_kernels(geglu)(gate), geglu(gate), atol=1e-6)
    assert with_kernels(norm)(x * torch.nan).isnan().all()
    assert not with_kernels(geglu)(gate * torch.inf).isfinite().all()


@pytest.mark.parametrize("make", [lambda x: x.contiguous(), lambda x: x.double(), lambda x: x[:, ::2]])
def test_unsupported_maps_fall_back_to_torch(make: object) -> None:
    x = make(torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
    norm = GroupNormSiLU(2, x.shape[1]).to(x.dtype)
    assert torch.equal(with_kernels(norm)(x), norm(x))


def test_a_unet_with_native_layers_computes_the_same() -> None:
    unet = UNet2DConditionModel(small_unet_config()).to(memory_format=torch.channels_last)
    fast = with_kernels(unet)
    assert fast.state_dict().keys() == unet.state_dict().keys()
    config = unet.config
    x = torch.randn(2, config.in_channels, 8, 8).contiguous(memory_format=torch.channels_last)
    arguments = (x, torch.tensor([3, 900]), Conditioning(torch.randn(2, 5, config.cross_attention_dim)))
    assert torch.allclose(fast(*arguments), unet(*arguments), atol=1e-5)
