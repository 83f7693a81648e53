"""Cached time projections: computed once, correct for other timesteps and prompts, and restored to the bit."""

import copy

import pytest
import torch
from torch import Tensor, nn

from latentdiff.models.conditioning import Conditioning
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.runtime import time_embedding_cache as module
from latentdiff.runtime.time_embedding_cache import TimeEmbeddingCache
from tests.runtime.test_optimize import small_unet

TIMES = [torch.tensor([7]), torch.tensor([901.5]), torch.tensor([7, 901])]


def kept(name: str) -> tuple[UNet2DConditionModel, TimeEmbeddingCache]:
    plain = small_unet(name)
    changed = copy.deepcopy(plain)
    assert TimeEmbeddingCache.can_replace(changed) == ""
    TimeEmbeddingCache.install(changed)
    assert isinstance(changed, TimeEmbeddingCache)
    return plain, changed


TEXT = Conditioning(torch.zeros(2, 1, 1))


def projections(unet: UNet2DConditionModel, timesteps: Tensor, conditioning: Conditioning = TEXT) -> Tensor:
    temb = unet.embed_time(timesteps, conditioning)
    return torch.cat([m.time_emb_proj(temb) for m in unet.modules() if hasattr(m, "time_emb_proj")], dim=1)


def test_projections_equal_those_of_plain_blocks_after_any_earlier_call() -> None:
    plain, changed = kept("sd1")
    for timesteps in [*TIMES, *TIMES]:
        assert torch.allclose(projections(changed, timesteps), projections(plain, timesteps), atol=1e-6)


def test_another_text_or_size_is_another_embedding() -> None:
    plain, changed = kept("xl")
    hidden, pooled, sizes = torch.zeros(2, 1, 1), torch.randn(2, 20), torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
    first = Conditioning(hidden, pooled, sizes)
    other_text, other_size = (
        Conditioning(hidden, 2 * pooled, sizes),
        Conditioning(hidden, pooled, sizes + 8),
    )
    for added in (first, other_text, other_size, first):
        wanted = projections(plain, TIMES[0], added)
        assert torch.allclose(projections(changed, TIMES[0], added), wanted, atol=1e-6)
    assert len(changed.kept) == 6  # two rows of each


def test_a_timestep_is_embedded_once_and_only_the_last_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    _, changed = kept("sd1")
    calls: list[int] = []
    changed.projections.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        for time in range(3):
            changed.embed_time(torch.tensor([time]), TEXT)
    assert len(calls) == 3
    changed.embed_time(torch.tensor([3]), TEXT)
    assert len(changed.kept) == 3
    changed.embed_time(torch.tensor([0]), TEXT)
    assert len(calls) == 5


def test_restoring_recovers_weights_to_the_bit() -> None:
    plain, changed = kept("sd2")
    changed.remove()
    assert type(changed) is UNet2DConditionModel and "kept" not in changed.__dict__
    wanted, found = plain.state_dict(), changed.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_layers_that_are_not_plain_are_unchanged() -> None:
    unet = small_unet("sd1")
    unet.mid_block.resnets[0].time_emb_proj = nn.Sequential(unet.mid_block.resnets[0].time_emb_proj)
    assert TimeEmbeddingCache.can_replace(unet) == "its time projections are not plain linear layers"
