"""Norms over a whole image that is processed in tiles."""

import torch
from torch import nn

from latentdiff.models.layers import GroupNormSiLU
from latentdiff.models.tile_norms import with_norms_of_all_tiles


def test_one_norm_is_exact_and_the_model_itself_does_not_change() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), GroupNormSiLU(4, 8), nn.Conv2d(8, 2, 1)).requires_grad_(False)
    x = torch.randn(1, 3, 20, 30)
    x[..., 10:, :12] = 4 * x[..., 10:, :12] + 3
    whole = model(x)
    tiles = [part for band in x.tensor_split([7], 2) for part in band.tensor_split([12, 20], 3)]
    fixed = with_norms_of_all_tiles(model, lambda module: [module(tile) for tile in tiles])
    bands = [torch.cat([fixed(tile) for tile in tiles[k : k + 3]], 3) for k in (0, 3)]
    torch.testing.assert_close(torch.cat(bands, 2), whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(tiles[0]), fixed(tiles[0]), atol=0.1)
    assert torch.equal(model(x), whole)
    assert fixed[0].weight is model[0].weight


def test_plain_norms_and_bfloat16() -> None:
    norm = nn.GroupNorm(2, 4, eps=1e-3).to(torch.bfloat16)
    x = (5 + 2 * torch.randn(1, 4, 16, 16)).to(torch.bfloat16)
    fixed = with_norms_of_all_tiles(nn.Sequential(norm), lambda module: [module(x[..., :5]), module(x[..., 5:])])
    out = fixed(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, norm(x), rtol=0, atol=0.03)


def test_norms_that_no_tile_reached_stay_plain() -> None:
    model = nn.ModuleDict({"used": nn.GroupNorm(1, 2), "unused": nn.GroupNorm(1, 2)})
    fixed = with_norms_of_all_tiles(model, lambda module: module["used"](torch.randn(1, 2, 4, 4)))
    assert type(fixed["unused"]) is nn.GroupNorm and type(fixed["used"]) is not nn.GroupNorm


def test_a_model_without_norms_is_returned() -> None:
    model = nn.Conv2d(3, 3, 1)
    assert with_norms_of_all_tiles(model, lambda _: None) is model
