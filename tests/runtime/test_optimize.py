"""Layers made ready for calls: the same numbers, and the same weights back."""

import copy
import platform
import resource
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentdiff.config.model import UNetConfig
from latentdiff.models.attention import Attention, attention
from latentdiff.models.unet import AddedCond, UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL
from latentdiff.runtime import optimize
from latentdiff.runtime.fused_attention import FusedCrossAttention
from latentdiff.runtime.memory import keep_freed_memory
from latentdiff.runtime.native import has_amx
from latentdiff.runtime.native_layers import fast_attention
from latentdiff.runtime.optimize import prepare, restore
from latentdiff.runtime.packed import PackedConv2d, PackedLinear
from tests.models.test_unet import SMALL
from tests.small import small_vae_config

DTYPES = [torch.float32, torch.bfloat16]
needs_amx = pytest.mark.skipif(not has_amx(), reason="no AMX, or no compiler")


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def as_class(layer: nn.Module, kind: type[nn.Module]) -> Any:
    changed = copy.deepcopy(layer)
    changed.__class__ = kind
    return changed


def small_unet(name: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(UNetConfig.read(SMALL[name] | {"norm_num_groups": 8}, name)).requires_grad_(False)


def answer(unet: UNet2DConditionModel, size: tuple[int, int] = (8, 8), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dtype = unet.conv_in.weight.dtype
    sample = torch.randn(2, unet.config.in_channels, *size, generator=generator).to(dtype)
    hidden, pooled = (torch.randn(2, *shape, generator=generator).to(dtype) for shape in ((5, 24), (20,)))
    sizes = torch.randint(0, 1024, (2, 6), generator=generator)
    added = AddedCond(pooled, sizes) if unet.config.addition_embed_type else None
    return unet(sample, torch.tensor([7, 901]), hidden, added)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_a_prepared_unet_is_no_further_from_float64_than_plain(name: str, dtype: torch.dtype) -> None:
    plain = small_unet(name)
    wanted = answer(copy.deepcopy(plain).double())
    theirs = error(answer(plain.to(dtype)), wanted)
    prepare(plain)
    assert error(answer(plain), wanted) <= max(1.5 * theirs, 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prepared_vae_is_no_further_from_float64_than_plain(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain, z = AutoencoderKL(small_vae_config()).requires_grad_(False), torch.randn(1, 4, 8, 8)
    wanted = copy.deepcopy(plain).double().decode(z.double())
    theirs = error(plain.to(dtype).decode(z.to(dtype)), wanted)
    prepare(plain)
    assert error(plain.decode(z.to(dtype)), wanted) <= max(1.5 * theirs, 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_restoring_gives_back_every_layer_and_bit(name: str, dtype: torch.dtype) -> None:
    plain = small_unet(name).to(dtype)
    prepared = copy.deepcopy(plain)
    prepare(prepared)
    answer(prepared)  # weights are packed at the first call
    restore(prepared)
    wanted, found = plain.state_dict(), prepared.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert torch.allclose(answer(prepared), answer(plain), atol=1e-5 if dtype == torch.float32 else 0.05)
    assert not any(isinstance(m, PackedLinear | PackedConv2d | FusedCrossAttention) for m in prepared.modules())


def test_other_sizes_and_texts_follow_the_first() -> None:
    plain = small_unet("sd2")
    prepared = copy.deepcopy(plain)
    prepare(prepared)
    for seed, size in enumerate([(8, 8), (16, 8), (10, 12), (8, 8)]):
        assert torch.allclose(answer(prepared, size, seed), answer(plain, size, seed), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_timestep_and_one_text_serve_a_batch(dtype: torch.dtype) -> None:
    plain = small_unet("sd2").to(dtype)
    prepared = copy.deepcopy(plain)
    prepare(prepared)
    sample, text = torch.randn(3, 4, 8, 8, dtype=dtype), torch.randn(1, 5, 24, dtype=dtype)
    one, each = (prepared(sample, torch.full((n,), 7), text.expand(3, -1, -1)) for n in (1, 3))
    assert torch.allclose(one, each, atol=1e-6)
    layer = next(m for m in prepared.modules() if isinstance(m, FusedCrossAttention))
    x = torch.randn(3, 9, layer.to_q.in_features, dtype=dtype)
    assert torch.allclose(layer.attend(x, text), layer.attend(x, text.repeat(3, 1, 1)), atol=2**-6)


@torch.no_grad()
def test_weights_loaded_between_two_calls_count_for_a_kept_text() -> None:
    unet, text = small_unet("sd2"), torch.randn(2, 5, 24)
    arguments = (torch.randn(2, 4, 8, 8), torch.tensor([7, 901]), text)
    prepare(unet)
    before = unet(*arguments)
    restore(unet)
    for module in unet.modules():
        if isinstance(module, Attention):
            module.to_v.weight.mul_(3)
    wanted = unet(*arguments)
    prepare(unet)
    assert torch.allclose(unet(*arguments), wanted, atol=1e-5) and not torch.allclose(before, wanted, atol=1e-3)
    text.mul_(2)
    first = unet(*arguments)
    restore(unet)
    assert torch.allclose(unet(*arguments), first, atol=1e-5)


def test_preparing_twice_is_preparing_once() -> None:
    unet = small_unet("sd2")
    wanted = answer(unet)
    prepare(unet)
    prepare(unet)
    assert torch.allclose(answer(unet), wanted, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_layers_compute_what_plain_ones_do(dtype: torch.dtype) -> None:
    near = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 2**-6}
    x, residual = (
        torch.randn(2, 24, 6, 5, dtype=dtype).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    conv, linear = nn.Conv2d(24, 24, 3, padding=1, dtype=dtype), nn.Linear(24, 24, dtype=dtype)
    for layer, kind in ((conv, PackedConv2d), (linear, PackedLinear)):
        packed = as_class(layer, kind)
        if kind is PackedLinear:
            x, residual = (t.flatten(2).transpose(1, 2) for t in (x, residual))
        assert torch.allclose(packed(x), layer(x), **near)
        assert torch.allclose(packed.add_to(residual, x), residual + layer(x), **near)


@torch.no_grad()
def test_keys_and_values_of_a_text_are_computed_once() -> None:
    unet = small_unet("sd2")
    prepare(unet)
    layer = next(m for m in unet.modules() if isinstance(m, FusedCrossAttention))
    x, text = torch.randn(2, 9, layer.to_q.in_features), torch.randn(2, 5, 24)
    calls = []
    layer.fused.register_forward_hook(lambda *_: calls.append(1))
    first, again = layer.attend(x, text), layer.attend(x, text)
    assert len(calls) == 1 and torch.equal(first, again)
    assert not torch.equal(layer.attend(x, text.clone() + 1), first) and len(calls) == 2


def attention_inputs(heads: int, dim: int, queries: int, keys: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [1.5 * torch.randn(2, n, heads * dim, generator=generator) for n in (queries, keys, keys)]


def assert_as_near_as_torchs(heads: int, q: Tensor, k: Tensor, v: Tensor) -> None:
    """At most 1.5 times torch's error on the same bfloat16, or a quarter of what rounding the answer costs."""
    q, k, v = (t.bfloat16() for t in (q, k, v))
    wanted = attention(q.double(), k.double(), v.double(), heads)
    ours, theirs = error(fast_attention(q, k, v, heads), wanted), error(attention(q, k, v, heads), wanted)
    assert ours <= max(1.5 * theirs, 4e-4), (ours, theirs)


@needs_amx
@pytest.mark.parametrize("dim", [8, 24, 40, 64, 80, 160, 512])
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (50, 77), (1, 1), (33, 300), (130, 129)])
def test_native_attention_is_as_near_to_float64_as_torchs(dim: int, queries: int, keys: int) -> None:
    assert_as_near_as_torchs(3, *attention_inputs(3, dim, queries, keys, seed=dim))


@needs_amx
@pytest.mark.parametrize("keys", [77, 300])
@pytest.mark.parametrize("factor", [0.01, 3.0, 10.0, 40.0, 3e3])
def test_native_attention_is_as_near_where_scores_are_small_or_large(factor: float, keys: int) -> None:
    q, k, v = attention_inputs(2, 40, 70, keys)
    assert_as_near_as_torchs(2, factor * q, k, v)


@needs_amx
@pytest.mark.parametrize("offset", [-400.0, -100.0, -65.0, -10.0, 50.0, 65.0, 100.0, 400.0])
def test_native_attention_is_as_near_wherever_scores_lie(offset: float) -> None:
    q, k, v = attention_inputs(1, 16, 70, 77)
    q[..., 0], k[..., 0] = offset, 4.0  # the square root of the dimension
    assert_as_near_as_torchs(1, q, k, 1e9 * v)


@needs_amx
def test_native_attention_reads_parts_of_a_wider_map() -> None:
    whole = torch.randn(2, 40, 3 * 64).bfloat16()
    q, k, v = whole.chunk(3, dim=-1)
    assert torch.equal(fast_attention(q, k, v, 2), fast_attention(q.contiguous(), k.contiguous(), v.contiguous(), 2))


@needs_amx
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_native_attention_says_what_is_no_number_and_nothing_else(value: float) -> None:
    q, k, v = (t.bfloat16() for t in attention_inputs(2, 32, 40, 50))
    clean = fast_attention(q, k, v, 2)
    q[0, 3, 5] = value
    found = fast_attention(q, k, v, 2)
    assert found[0, 3, :32].isnan().all()
    found[0, 3, :32] = clean[0, 3, :32]
    assert error(found, clean.double()) < 5e-3
    k[1, 49, 40] = torch.nan
    assert fast_attention(q, k, v, 2)[1, :, 32:].isnan().all()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept() -> None:
    keep_freed_memory()
    size = 12 * 1024 * 1024  # floats: more than glibc would ever keep by itself
    for _ in range(20):
        torch.ones(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 4 * size / resource.getpagesize() / 10


@torch.no_grad()
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_calls_of_a_packed_layer_keep_freed_memory_again() -> None:
    layer, x = as_class(nn.Conv2d(2, 8, 3, padding=1), PackedConv2d), torch.randn(1, 2, 1024, 512)
    faults = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        pages = layer(x).nbytes / resource.getpagesize()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[0] > pages / 2 and min(faults) < pages / 10


def test_attention_that_has_no_kernel_takes_torchs_way() -> None:
    q, k, v = torch.randn(3, 1, 6, 8)
    assert torch.equal(fast_attention(q, k, v, 2), attention(q, k, v, 2))


def test_attention_adds_what_it_is_given() -> None:
    layer, (residual, x, context) = Attention(8, 8, 2, 4), torch.randn(3, 1, 6, 8)
    alone = layer(torch.zeros_like(x), x, context)
    assert torch.allclose(layer(residual, x, context), residual + alone, atol=1e-6)
    assert not torch.allclose(alone, layer(torch.zeros_like(x), x), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_nothing_is_packed_attention_is_fused_all_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(optimize, "_can_pack", lambda _: False)
    plain = small_unet("sd2").to(dtype)
    prepared = copy.deepcopy(plain)
    prepare(prepared)
    assert any(isinstance(m, FusedCrossAttention) for m in prepared.modules())
    assert not any(isinstance(m, PackedLinear | PackedConv2d) for m in prepared.modules())
    assert torch.allclose(answer(prepared), answer(plain), atol=1e-5 if dtype == torch.float32 else 0.05)
    restore(prepared)
    wanted, found = plain.state_dict(), prepared.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_prepared_on_a_gpu_is_no_further_from_float64_than_plain(dtype: torch.dtype) -> None:
    plain = small_unet("sd2")
    text, sample = torch.randn(2, 5, 24), torch.randn(2, 4, 8, 8)

    def call(unet: UNet2DConditionModel, dtype: torch.dtype, device: str) -> Tensor:
        times = torch.tensor([7, 901], device=device)
        return unet.to(device, dtype)(sample.to(device, dtype), times, text.to(device, dtype)).cpu()

    wanted = call(copy.deepcopy(plain), torch.float64, "cpu")
    theirs = error(call(plain, dtype, "cuda"), wanted)
    prepare(plain)
    assert error(call(plain, dtype, "cuda"), wanted) <= 1.5 * theirs
