"""What packed layers do in every precision."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.models.attention import GEGLU
from latentdiff.runtime.native_layers import use_native_kernels
from latentdiff.runtime.packed import PackedConv2d, PackedLinear, unpack
from latentdiff.runtime.panels import Order, order_of


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def check_stays_in_panels(plain: nn.Linear | nn.Conv2d, draw: Callable[..., Tensor], rounding: float) -> None:
    """A linear layer or 1x1 convolution is in panels for few rows and for many, and is restored to the bit."""
    layer: Any = copy.deepcopy(plain.requires_grad_(False))
    layer.__class__ = PackedConv2d if isinstance(plain, nn.Conv2d) else PackedLinear
    depth = plain.weight.shape[1]
    for rows in (48, 4096, 3):
        x = draw(1, depth, 1, rows) if isinstance(plain, nn.Conv2d) else draw(rows, depth)
        wanted = copy.deepcopy(plain).double()(x.double())
        assert error(layer(x), wanted) < rounding
        residual = draw(*wanted.shape, seed=1)
        assert error(layer.add_to(residual, x), residual.double() + wanted) < rounding
        assert order_of(layer.weight) is Order.PANELS
    unpack(layer)
    assert torch.equal(layer.weight, plain.weight)


def check_packs_halves_together(plain: GEGLU, draw: Callable[..., Tensor], rounding: float) -> None:
    """A layer with GEGLU is in gated panels, can be called without GEGLU in between, and is restored to the bit."""
    fast: Any = copy.deepcopy(plain.requires_grad_(False))
    use_native_kernels(nn.Sequential(fast))
    fast.proj.__class__ = PackedLinear
    depth = plain.proj.in_features
    for x in (draw(2, 77, depth), draw(3, depth)):
        assert error(fast(x), copy.deepcopy(plain).double()(x.double())) < rounding
        assert order_of(fast.proj.weight) is Order.GATED
    assert error(fast.proj(x), copy.deepcopy(plain.proj).double()(x.double())) < rounding
    assert order_of(fast.proj.weight) is not Order.GATED
    fast(x)
    unpack(fast.proj)
    assert torch.equal(fast.proj.weight, plain.proj.weight)
