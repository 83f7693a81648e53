"""Random numbers of a draw do not depend on the batch, and timesteps have the stated density."""

import pytest
import torch

from latentdiff.training.rng import Draws


def test_a_draw_has_its_own_noise_in_any_batch() -> None:
    one = Draws(3, torch.arange(6))
    parts = [Draws(3, torch.tensor(numbers)) for numbers in ([0, 1, 2], [3], [4, 5])]
    like = torch.zeros(6, 4, 2, 2)
    whole = one.normal(like)
    assert torch.equal(whole, torch.cat([part.normal(like[: len(part.numbers)]) for part in parts]))
    assert torch.equal(one.timesteps(1000, 2.0), torch.cat([part.timesteps(1000, 2.0) for part in parts]))
    assert not torch.equal(whole, Draws(4, torch.arange(6)).normal(like))
    assert abs(Draws(0, torch.arange(500)).normal(torch.zeros(500, 40)).std().item() - 1) < 0.02


def test_timesteps_cover_the_range_evenly_from_any_draw() -> None:
    for first in (0, 12345, 10**7):
        drawn = Draws(0, torch.arange(first, first + 64)).timesteps(1000, 1.0)
        counts = torch.histc(drawn.float(), 8, 0, 1000)
        assert counts.min() >= 7 and counts.max() <= 9
    assert Draws(0, torch.arange(5000)).timesteps(1000, 1.0).max() == 999


def test_the_power_shifts_timesteps_towards_noise() -> None:
    drawn = Draws(0, torch.arange(20_000)).timesteps(1000, 2.0)
    for share in (0.1, 0.5, 0.9):
        assert (drawn < 1000 * share).float().mean().item() == pytest.approx(share**2, abs=2e-3)
