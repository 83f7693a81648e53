"""8-bit convolutions: close to float32, independent of the batch, and removed by `restore`."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import InputError
from latentdiff.models.attention import BasicTransformerBlock
from latentdiff.models.conditioning import Conditioning
from latentdiff.models.layers import GroupNormSiLU, ResnetBlock2D
from latentdiff.runtime.int8 import TOP, ZERO, Int8Conv2d, Int8GroupNormSiLU, quantise
from latentdiff.runtime.int8_linear import Int8LayerNorm, Int8Linear
from latentdiff.runtime.native import load_kernels
from latentdiff.runtime.native_layers import quantised_group_norm
from latentdiff.runtime.optimize import prepare, restore
from tests.runtime.test_optimize import answer, error, small_unet
from tests.runtime.variants import TESTABLE

can = load_kernels() is not None and torch.cpu.get_capabilities().get("avx512_vnni")
needs_vnni = pytest.mark.skipif(not can, reason="no AVX-512 VNNI, or no compiler")


def block(channels: int = 32, out: int = 48) -> ResnetBlock2D:
    made = ResnetBlock2D(channels, out, 16, groups=8).requires_grad_(False)
    for norm in (made.norm1, made.norm2):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    return made


def on_8_bits(plain: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    changed = copy.deepcopy(plain).to(dtype)
    prepare(changed)
    quantise(changed)
    return changed


both_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])


@needs_vnni
@both_dtypes
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
@torch.no_grad()
def test_a_block_agrees_with_float32_also_at_its_borders(size: tuple[int, int], dtype: torch.dtype) -> None:
    plain = block()
    changed = on_8_bits(plain, dtype)
    assert isinstance(changed.conv1, Int8Conv2d) and isinstance(changed.conv2, Int8Conv2d)
    x, temb = torch.randn(3, 32, *size), torch.randn(3, 16)
    wanted, found = plain(x, temb).double(), changed(x.to(dtype), temb.to(dtype))
    assert found.dtype == dtype and error(found, wanted) < 0.03
    assert error(found[..., 0, :], wanted[..., 0, :]) < 0.04 and error(found[..., -1], wanted[..., -1]) < 0.04


@needs_vnni
@both_dtypes
@torch.no_grad()
def test_the_norm_writes_integers_according_to_its_formula(dtype: torch.dtype) -> None:
    norm = GroupNormSiLU(4, 16)
    nn.init.normal_(norm.bias)
    steps, x = torch.linspace(5, 200, 16), torch.randn(2, 16, 3, 5).to(dtype)
    shift = torch.randn(2, 16).to(dtype)
    found = quantised_group_norm(norm, x, shift, steps, ZERO)
    exact = norm(x.float() + shift.float()[:, :, None, None]) * steps[:, None, None] + ZERO
    inner = found[:, :, 1:-1, 1:-1].float()
    assert found.dtype == torch.uint8 and (inner - exact.clamp(0, TOP)).abs().max() < 0.51
    assert (exact > TOP).any() and (exact < ZERO).any()
    frame = found.clone()
    frame[:, :, 1:-1, 1:-1] = ZERO
    assert (frame == ZERO).all()


@needs_vnni
@pytest.mark.parametrize("variant", TESTABLE, indirect=True)
@pytest.mark.parametrize("side", [8, 16])  # whose weights the kernel for few pixels and oneDNN pack
@torch.no_grad()
def test_a_block_that_was_called_before_computes_the_same(variant: str, side: int) -> None:
    plain, x, temb = block(64, 64), torch.randn(2, 64, side, side).bfloat16(), torch.randn(2, 16).bfloat16()
    fresh, called = on_8_bits(plain), copy.deepcopy(plain).bfloat16()
    prepare(called)
    first = called(x, temb)
    quantise(called)
    assert torch.equal(called(x, temb), fresh(x, temb))
    restore(called)
    prepare(called)
    assert torch.equal(called(x, temb), first)


@needs_vnni
@pytest.mark.parametrize("variant", TESTABLE, indirect=True)
@both_dtypes
@torch.no_grad()
def test_convolutions_by_winograds_algorithm_stay_exact(variant: str, dtype: torch.dtype) -> None:
    changed = on_8_bits(block(64, 64), dtype)
    exact = dtype == torch.float32 or variant != "amx"
    assert isinstance(changed.conv1, Int8Conv2d) is not exact
    assert isinstance(changed.norm1, Int8GroupNormSiLU) is not exact


@needs_vnni
@torch.no_grad()
def test_a_picture_does_not_depend_on_the_others_of_its_batch() -> None:
    changed = on_8_bits(block())
    x, temb = torch.randn(3, 32, 8, 8).bfloat16(), torch.randn(1, 16).bfloat16()
    together = changed(x, temb)
    x[1:] *= 100
    assert torch.equal(changed(x, temb)[0], together[0])


@needs_vnni
@pytest.mark.parametrize("variant", TESTABLE, indirect=True)
@both_dtypes
@torch.no_grad()
def test_the_layer_norm_writes_integers_according_to_its_formula(variant: str, dtype: torch.dtype) -> None:
    norm: nn.Module = nn.LayerNorm(37).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, steps = 3 * torch.randn(2, 5, 37).to(dtype) + 1, torch.linspace(5, 200, 37)
    exact = norm(x.float()) * steps + 128
    norm.__class__, norm.steps = Int8LayerNorm, steps
    found = norm(x)
    assert found.dtype == torch.uint8 and (found.float() - exact.clamp(0, TOP)).abs().max() < 0.51
    assert (exact > TOP).any() and (exact < 0).any()


@needs_vnni
@pytest.mark.parametrize("variant", TESTABLE, indirect=True)
@both_dtypes
@torch.no_grad()
def test_a_transformer_block_agrees_with_float32_row_by_row_and_is_restored(variant: str, dtype: torch.dtype) -> None:
    plain = BasicTransformerBlock(64, 4, 48).requires_grad_(False)
    for norm in (plain.norm1, plain.norm2, plain.norm3):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    changed = on_8_bits(plain, dtype)
    assert sum(isinstance(m, Int8Linear) for m in changed.modules()) == 3
    x, text = torch.randn(3, 20, 64), Conditioning(torch.randn(3, 7, 48))
    update = plain(x, text).double() - x
    found = changed(x.to(dtype), Conditioning(text.hidden.to(dtype)))
    assert error(found - x, update) < 0.05
    x[1:] *= 100
    again = changed(x.to(dtype), Conditioning(text.hidden.to(dtype)))
    assert torch.equal(again[0], found[0])
    restore(changed)
    state = copy.deepcopy(plain).to(dtype).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in changed.state_dict().items())


@needs_vnni
def test_an_int8_unet_agrees_with_float32_and_is_restored_to_the_bit() -> None:
    plain = small_unet("sd2")
    changed = on_8_bits(plain)
    wanted: Tensor = answer(copy.deepcopy(plain).double())
    found = answer(changed)
    plain.bfloat16()
    assert error(answer(plain), wanted) < error(found, wanted) < 0.05
    restore(changed)
    integer = Int8Conv2d | Int8GroupNormSiLU | Int8Linear | Int8LayerNorm
    assert not any(isinstance(m, integer) for m in changed.modules())
    state, back = plain.state_dict(), changed.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)
    assert torch.allclose(answer(changed), answer(plain), atol=0.05)
    assert {type(m) for m in changed.modules() if isinstance(m, GroupNormSiLU)} == {GroupNormSiLU}


@needs_vnni
def test_a_lora_loaded_later_takes_effect(model_folder: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="bfloat16", approximate=["int8"])
    with pipe._plain() as parts:
        assert not any(isinstance(m, Int8Conv2d) for m in parts.denoiser.modules())
        parts.denoiser.down_blocks[0].resnets[0].conv1.weight.data.mul_(3)
    changed = pipe.denoiser.down_blocks[0].resnets[0].conv1
    scale = changed.quantised[1].clone()
    with pipe._plain() as parts:
        parts.denoiser.down_blocks[0].resnets[0].conv1.weight.data.mul_(2)
    assert torch.allclose(changed.quantised[1], 2 * scale)


def test_int8_in_float16_is_a_one_line_error(model_folder: Path) -> None:
    with pytest.raises(InputError, match="approximate='int8' needs a CPU with AVX-512 VNNI, dtype='bfloat16' or"):
        LatentDiffusionPipeline.from_pretrained(model_folder, device="cpu", dtype="float16", approximate=["int8"])
    with pytest.raises(InputError, match="needs optimize='auto'"):
        LatentDiffusionPipeline.from_pretrained(model_folder, optimize="off", approximate=["reuse"])
