"""Confidence intervals by resampling."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from latentdiff.errors import InputError

METHOD = "bootstrap over random halves, without repeats"
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Interval:
    """A value, its standard error, and the 95 % interval value +- 1.96 std."""

    value: float
    std: float
    low: float
    high: float


Statistic = Callable[[Tensor, Tensor], dict[str, float]]


def check_resamples(resamples: int) -> None:
    """Raise InputError for fewer than two resamples, which have no standard deviation."""
    if resamples < 2:
        raise InputError(f"resamples={resamples} must be at least 2; try 100")


def intervals(statistic: Statistic, counts: tuple[int, int], resamples: int, seed: int) -> dict[str, Interval]:
    """Values and 95 % intervals of `statistic(rows of the first set, rows of the second)`.

    A resample is a random half of each set. Its variance equals that of the value for the complete set (exactly for a
    mean: s^2 / (n/2) * (1 - 1/2) = s^2 / n), and no picture occurs twice. The usual bootstrap repeats pictures, and a
    repeated picture is a neighbour at distance 0, which biases precision, recall, kernel and Frechet distance.
    Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 8.
    Raises InputError for under 2 resamples.
    """
    check_resamples(resamples)
    generator = torch.Generator().manual_seed(seed)

    def half(count: int) -> Tensor:
        return torch.randperm(count, generator=generator)[: count // 2]

    full = statistic(torch.arange(counts[0]), torch.arange(counts[1]))
    bar = tqdm(range(resamples), desc=f"interval of {next(iter(full))}", disable=None, leave=False)
    drawn = [statistic(half(counts[0]), half(counts[1])) for _ in bar]
    return {key: _interval(value, [one[key] for one in drawn]) for key, value in full.items()}


def _interval(value: float, drawn: list[float]) -> Interval:
    std = torch.tensor(drawn, dtype=torch.float64).std().item()
    return Interval(value, std, value - NORMAL_95 * std, value + NORMAL_95 * std)
