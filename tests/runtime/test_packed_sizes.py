"""Packed layers of every variant compute the same values for any map size, whichever kernel is used."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.runtime.packed import PackedConv2d, unpack
from latentdiff.runtime.panels import convolution, to_panels
from tests.runtime.variants import on_variants

pytestmark = pytest.mark.usefixtures("variant")
ROUNDING = 2.0**-8  # of the result to bfloat16, half of it on the average


def draw(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return x.contiguous(memory_format=torch.channels_last)


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@on_variants()
@pytest.mark.parametrize("columns", [40, 64])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_computes_the_same_whatever_size_it_was_first_called_on(columns: int, kernel: int) -> None:
    plain = nn.Conv2d(64, columns, kernel, padding=kernel // 2).bfloat16().requires_grad_(False)
    layer: Any = copy.deepcopy(plain)
    layer.__class__ = PackedConv2d
    for batch, height, width in [(2, 16, 12), (1, 4, 4), (3, 8, 8), (1, 3, 2), (1, 20, 4)]:
        x, residual = (draw(batch, channels, height, width, seed=height) for channels in (64, columns))
        wanted = copy.deepcopy(plain).double()(x.double())
        assert error(layer(x), wanted) < ROUNDING / 2
        assert error(layer.add_to(residual, x), wanted + residual.double()) < ROUNDING
    unpack(layer)
    assert torch.equal(layer.weight, plain.weight)


@on_variants("amx", "avx512_bf16")
@pytest.mark.parametrize("size", [(1, 4, 4), (2, 4, 4), (3, 5, 7), (2, 8, 8), (5, 2, 9), (4, 8, 8)])
@pytest.mark.parametrize("depth", [32, 384])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_3x3_convolution_of_few_pixels(size: tuple[int, int, int], depth: int, threads: int) -> None:
    batch, height, width = size
    x, weight = draw(batch, depth, height, width), draw(96, depth, 3, 3, seed=1) / (3 * depth**0.5)
    bias, residual = draw(96, 1, 1, 1, seed=2).flatten(), draw(batch, 96, height, width, seed=3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = convolution(x, to_panels(weight), bias, residual)
    finally:
        torch.set_num_threads(before)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), padding=1) + residual.double()
    assert error(found, wanted) < ROUNDING / 2
