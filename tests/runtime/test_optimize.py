"""Prepared layers compute the same values, and `restore` recovers the weights."""

import copy
import platform
import resource
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentdiff.config.model import UNetConfig
from latentdiff.models.attention import Attention
from latentdiff.models.conditioning import Conditioning, concatenate
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL
from latentdiff.runtime import packed, time_embedding_cache
from latentdiff.runtime.fused_attention import FusedCrossAttention
from latentdiff.runtime.memory import keep_freed_memory
from latentdiff.runtime.optimize import prepare, restore
from latentdiff.runtime.packed import PackedConv2d, PackedLinear
from tests.models.test_unet import SMALL
from tests.small import small_vae_config

DTYPES = [torch.float32, torch.bfloat16]


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
    added = (pooled, sizes) if unet.config.addition_embed_type else ()
    return unet(sample, torch.tensor([7, 901]), Conditioning(hidden, *added))


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
def test_restoring_recovers_every_layer_to_the_bit(name: str, dtype: torch.dtype) -> None:
    plain = small_unet(name).to(dtype)
    prepared = copy.deepcopy(plain)
    prepare(prepared)
    answer(prepared)  # weights are packed at the first call
    restore(prepared)
    wanted, found = plain.state_dict(), prepared.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert torch.allclose(answer(prepared), answer(plain), atol=1e-5 if dtype == torch.float32 else 0.05)
    assert not any(isinstance(m, PackedLinear | PackedConv2d | FusedCrossAttention) for m in prepared.modules())


def test_a_prepared_unet_accepts_other_sizes_and_prompts() -> None:
    plain = small_unet("sd2")
    prepared = copy.deepcopy(plain)
    prepare(prepared)
    for seed, size in enumerate([(8, 8), (16, 8), (10, 12), (8, 8)]):
        assert torch.allclose(answer(prepared, size, seed), answer(plain, size, seed), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_timestep_and_one_prompt_are_broadcast_over_a_batch(dtype: torch.dtype) -> None:
    plain = small_unet("sd2").to(dtype)
    prepared = copy.deepcopy(plain)
    prepare(prepared)
    sample, text = torch.randn(3, 4, 8, 8, dtype=dtype), torch.randn(1, 5, 24, dtype=dtype)
    one, each = (prepared(sample, torch.full((n,), 7), Conditioning(text.expand(3, -1, -1))) for n in (1, 3))
    assert torch.allclose(one, each, atol=1e-6)
    layer = next(m for m in prepared.modules() if isinstance(m, FusedCrossAttention))
    x = torch.randn(3, 9, layer.to_q.in_features, dtype=dtype)
    same, repeated = Conditioning(text).repeat(3), Conditioning(text.repeat(3, 1, 1))
    assert torch.equal(layer.attend(x, same), layer.attend(x, repeated))


@torch.no_grad()
def test_weights_loaded_between_two_calls_apply_to_a_kept_prompt() -> None:
    unet, text = small_unet("sd2"), torch.randn(2, 5, 24)
    arguments = (torch.randn(2, 4, 8, 8), torch.tensor([7, 901]), Conditioning(text))
    prepare(unet)
    before = unet(*arguments)
    restore(unet)
    for module in unet.modules():
        if isinstance(module, Attention):
            module.to_v.weight.mul_(3)
    wanted = unet(*arguments)
    prepare(unet)
    assert torch.allclose(unet(*arguments), wanted, atol=1e-5) and not torch.allclose(before, wanted, atol=1e-3)


def test_preparing_twice_is_preparing_once() -> None:
    unet = small_unet("sd2")
    wanted = answer(unet)
    prepare(unet)
    prepare(unet)
    assert torch.allclose(answer(unet), wanted, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_layers_compute_the_same_as_plain_layers(dtype: torch.dtype) -> None:
    near = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 2**-6}
    x, residual = (
        torch.randn(2, 24, 6, 5, dtype=dtype).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    conv, linear = nn.Conv2d(24, 24, 3, padding=1, dtype=dtype), nn.Linear(24, 24, dtype=dtype)
    for layer, kind in ((conv, PackedConv2d), (linear, PackedLinear)):
        fast = as_class(layer, kind)
        if kind is PackedLinear:
            x, residual = (t.flatten(2).transpose(1, 2) for t in (x, residual))
        assert torch.allclose(fast(x), layer(x), **near)
        assert torch.allclose(fast.add_to(residual, x), residual + layer(x), **near)


@torch.no_grad()
def test_keys_and_values_of_a_prompt_are_computed_once_whatever_shares_its_batch() -> None:
    unet = small_unet("sd2")
    prepare(unet)
    layer = next(m for m in unet.modules() if isinstance(m, FusedCrossAttention))
    x, text = torch.randn(2, 9, layer.to_q.in_features), Conditioning(torch.randn(2, 5, 24))
    calls: list[int] = []
    layer.fused.register_forward_hook(lambda *_: calls.append(1))
    first, again = layer.attend(x, text), layer.attend(x, text)
    assert len(calls) == 2 and torch.equal(first, again)
    swapped = layer.attend(x.flip(0), concatenate([text[1:], text[:1]]))
    assert len(calls) == 2 and torch.equal(swapped.flip(0), first)
    assert not torch.equal(layer.attend(x, Conditioning(text.hidden + 1)), first) and len(calls) == 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept() -> None:
    keep_freed_memory()
    size = 12 * 1024 * 1024  # floats: more than glibc keeps by default
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


def test_attention_adds_its_residual() -> None:
    layer, (residual, x, hidden) = Attention(8, 8, 2, 4), torch.randn(3, 1, 6, 8)
    context = Conditioning(hidden)
    alone = layer(torch.zeros_like(x), x, context)
    assert torch.allclose(layer(residual, x, context), residual + alone, atol=1e-6)
    assert not torch.allclose(alone, layer(torch.zeros_like(x), x), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_fused_even_if_nothing_is_packed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    for module in (packed, time_embedding_cache):
        monkeypatch.setattr(module, "cannot_pack", lambda _: "not here")
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
        return unet.to(device, dtype)(sample.to(device, dtype), times, Conditioning(text.to(device, dtype))).cpu()

    wanted = call(copy.deepcopy(plain), torch.float64, "cpu")
    theirs = error(call(plain, dtype, "cuda"), wanted)
    prepare(plain)
    assert error(call(plain, dtype, "cuda"), wanted) <= 1.5 * theirs
