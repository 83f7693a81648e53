"""Upsampling and its convolution as four 2x2 convolutions of the small map, against float64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from latentdiff.models.attention import SpatialSelfAttention
from latentdiff.models.layers import Upsample2D
from latentdiff.runtime.fused_upsample import FusedUpsample, summed_taps
from latentdiff.runtime.native_layers import NativeSpatialSelfAttention
from latentdiff.runtime.optimize import prepare, restore
from latentdiff.runtime.packed import cannot_pack

DTYPES = [torch.float32, torch.bfloat16]
pytestmark = pytest.mark.skipif(bool(cannot_pack(torch.zeros(1))), reason="weights are not packed here")


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def prepared(layer: nn.Module) -> nn.Module:
    model = nn.Sequential(copy.deepcopy(layer))
    prepare(model)
    return model[0]


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 8, 8), None), ((1, 16, 5), (32, 10)), ((1, 9, 9), (17, 18)), ((1, 3, 4), None)]
)
def test_upsampling_is_as_accurate_as_the_plain_layer(
    shape: tuple[int, int, int], size: tuple[int, int] | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    batch, height, width = shape
    plain = Upsample2D(24).to(dtype)
    x = torch.randn(batch, 24, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    wanted = copy.deepcopy(plain).double()(x.double(), size)
    fast = prepared(plain)
    assert isinstance(fast, FusedUpsample)
    for _ in range(2):
        found = fast(x, size)
        assert found.shape == wanted.shape and found.is_contiguous(memory_format=torch.channels_last)
        assert error(found, wanted) <= max(1.5 * error(plain(x, size), wanted), 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_restoring_recovers_the_convolution_to_the_bit_and_drops_the_sums(dtype: torch.dtype) -> None:
    model = nn.Sequential(Upsample2D(32).to(dtype))
    plain, sizes = copy.deepcopy(model), (3, 8)
    prepare(model)
    for side in sizes:  # the first is computed in two steps, which packs the convolution's own weight
        model(torch.randn(1, 32, side, side, dtype=dtype))
    restore(model)
    assert type(model[0]) is Upsample2D and not hasattr(model[0], "packed")
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), plain.parameters(), strict=True))
    model[0].conv.weight.mul_(2)
    x = torch.randn(1, 32, 8, 8, dtype=dtype)
    wanted = model(x).clone()
    prepare(model)
    assert error(model(x), wanted.double()) < (1e-6 if dtype == torch.float32 else 0.01)


def test_taps_that_read_the_same_pixel_are_summed() -> None:
    taps = summed_taps(torch.arange(1.0, 10.0).reshape(1, 1, 3, 3))
    even = torch.tensor([[1.0, 5.0], [11.0, 28.0]])  # 1, 2 + 3; 4 + 7, 5 + 6 + 8 + 9
    assert torch.equal(taps[0, 0], even) and taps.shape == (4, 1, 2, 2)
    assert torch.equal(taps[3, 0], torch.tensor([[12.0, 9.0], [15.0, 9.0]]))


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_attention_of_a_vae_is_as_accurate_as_the_plain_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = SpatialSelfAttention(64, 8).to(dtype)
    x = torch.randn(2, 64, 8, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
    wanted = copy.deepcopy(plain).double()(x.double())
    model = nn.Sequential(copy.deepcopy(plain))
    prepare(model)
    if not isinstance(model[0], NativeSpatialSelfAttention):
        pytest.skip("there are no kernels here")
    assert error(model(x), wanted) <= max(1.5 * error(plain(x), wanted), 1e-6)
    restore(model)
    assert type(model[0]) is SpatialSelfAttention
