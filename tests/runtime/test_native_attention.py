"""Attention of each kernel variant against float64."""

import pytest
import torch
from torch import Tensor

from latentdiff.models.attention import attention
from latentdiff.runtime.native_layers import fast_attention
from tests.runtime.variants import on_variants

pytestmark = [on_variants(), pytest.mark.usefixtures("variant")]


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def attention_inputs(heads: int, dim: int, queries: int, keys: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [1.5 * torch.randn(2, n, heads * dim, generator=generator) for n in (queries, keys, keys)]


def assert_as_near_as_torchs(heads: int, *inputs: Tensor) -> None:
    """At most 1.5 times torch's error on the same input, or a small fraction of the rounding error of the output."""
    for dtype, least in ((torch.bfloat16, 4e-4), (torch.float32, 2e-6)):
        q, k, v = (t.to(dtype) for t in inputs)
        wanted = attention(q.double(), k.double(), v.double(), heads)
        ours, theirs = error(fast_attention(q, k, v, heads), wanted), error(attention(q, k, v, heads), wanted)
        assert ours <= max(1.5 * theirs, least), (dtype, ours, theirs)


@pytest.mark.parametrize("dim", [8, 24, 40, 64, 80, 160, 512])
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (50, 77), (1, 1), (33, 300), (130, 129)])
def test_native_attention_is_as_accurate_as_torchs(dim: int, queries: int, keys: int) -> None:
    assert_as_near_as_torchs(3, *attention_inputs(3, dim, queries, keys, seed=dim))


@pytest.mark.parametrize("keys", [77, 300])
@pytest.mark.parametrize("factor", [0.01, 3.0, 10.0, 40.0, 3e3])
def test_native_attention_is_as_accurate_for_small_and_large_scores(factor: float, keys: int) -> None:
    q, k, v = attention_inputs(2, 40, 70, keys)
    assert_as_near_as_torchs(2, factor * q, k, v)


@pytest.mark.parametrize("offset", [-400.0, -100.0, -65.0, -10.0, 50.0, 65.0, 100.0, 400.0])
def test_native_attention_is_as_accurate_when_scores_are_shifted(offset: float) -> None:
    q, k, v = attention_inputs(1, 16, 70, 77)
    q[..., 0], k[..., 0] = offset, 4.0  # the square root of the dimension
    assert_as_near_as_torchs(1, q, k, 1e9 * v)


def test_native_attention_reads_slices_of_a_wider_tensor() -> None:
    whole = torch.randn(2, 40, 3 * 64).bfloat16()
    q, k, v = whole.chunk(3, dim=-1)
    assert torch.equal(fast_attention(q, k, v, 2), fast_attention(q.contiguous(), k.contiguous(), v.contiguous(), 2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_native_attention_propagates_nan_and_infinity_only_where_they_belong(value: float) -> None:
    q, k, v = (t.bfloat16() for t in attention_inputs(2, 32, 40, 50))
    clean = fast_attention(q, k, v, 2)
    q[0, 3, 5] = value
    found = fast_attention(q, k, v, 2)
    assert found[0, 3, :32].isnan().all()
    found[0, 3, :32] = clean[0, 3, :32]
    assert error(found, clean.double()) < 5e-3
    k[1, 49, 40] = torch.nan
    assert fast_attention(q, k, v, 2)[1, :, 32:].isnan().all()


def test_attention_without_a_kernel_falls_back_to_torch() -> None:
    q, k, v = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    assert torch.equal(fast_attention(q, k, v, 2), attention(q, k, v, 2))
    q, k, v = (t.bfloat16() for t in (q, k, v))  # heads of an odd number of values
    assert torch.equal(fast_attention(q, k, v, 2), attention(q, k, v, 2))
