"""Linear layers with GEGLU in the product are close to float64, row by row the same in any batch."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from latentdiff.models.attention import GEGLU
from latentdiff.runtime.panels import gated_linear, to_gated_panels
from tests.runtime.packed_checks import check_packs_halves_together, error
from tests.runtime.test_packed import ROUNDING, draw
from tests.runtime.variants import on_variants

pytestmark = [on_variants("amx", "avx512_bf16"), pytest.mark.usefixtures("variant")]


@pytest.mark.parametrize(("rows", "depth", "width"), [(3, 32, 640), (17, 64, 48), (200, 1312, 80), (49, 320, 1280)])
@pytest.mark.parametrize("more", [False, True])
def test_gated_linear(rows: int, depth: int, width: int, more: bool) -> None:
    x, weight = draw(rows, depth), draw(2 * width, depth, seed=1) / depth**0.5
    bias = draw(2 * width, seed=2) if more else None
    value, gate = F.linear(x.double(), weight.double(), bias.double() if more else None).chunk(2, dim=-1)
    assert error(gated_linear(x, to_gated_panels(weight), bias), value * F.gelu(gate)) < ROUNDING / 2


def test_gelu_is_accurate_over_its_whole_range() -> None:
    gates = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([-1e30, -200.0, 200.0, 1e30])]).bfloat16()
    x = torch.zeros(len(gates), 32).bfloat16()
    x[:, 0] = gates
    weight = torch.zeros(32, 32).bfloat16()
    weight[16:, 0] = 1
    bias = torch.cat([torch.ones(16), torch.zeros(16)]).bfloat16()
    found, wanted = gated_linear(x, to_gated_panels(weight), bias).double(), F.gelu(gates.double())[:, None]
    assert ((found - wanted).abs() <= wanted.abs() * ROUNDING + 2e-5).all()
    x[0, 0], x[1, 0], x[2, 0] = torch.nan, torch.inf, -torch.inf
    found = gated_linear(x, to_gated_panels(weight), bias)
    assert found[0].isnan().all() and not found[1:3].isfinite().all() and found[3:].isfinite().all()


@pytest.mark.parametrize("depth", [64, 640, 1280])
def test_a_row_is_bit_identical_in_any_batch_and_with_any_number_of_threads(depth: int) -> None:
    x, gate, bias = draw(2100, depth), to_gated_panels(draw(96, depth, seed=1)), draw(96, seed=2)
    gated, threads = gated_linear(x, gate, bias), torch.get_num_threads()
    try:
        for count, rows in enumerate((slice(0, 1), slice(5, 14), slice(24, 64), slice(100, 177), slice(1000, 2100)), 1):
            torch.set_num_threads(count)
            assert torch.equal(gated_linear(x[rows], gate, bias), gated[rows])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_layer_packs_its_halves_together_and_restores_them(bias: bool) -> None:
    plain: Any = GEGLU(64, 48).bfloat16()
    plain.proj.bias = plain.proj.bias if bias else None
    check_packs_halves_together(plain, draw, ROUNDING)
