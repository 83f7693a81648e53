"""Spacings: the noise levels of a schedule that a sampling run visits, as timesteps or as sigma / alpha."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from latentdiff.errors import InputError, did_you_mean

LCM_STEPS = 50
# Sabour et al. 2024, "Align Your Steps" (arXiv 2404.14507): published levels of ten steps for SD 1.5 and for SDXL.
ALIGNED = {
    "align_your_steps": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152],
    "align_your_steps_xl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113],
}
ALIGNED_RANGE = (14.615, 0.0292)  # the noisiest and the last level of the schedule that they were optimised for
BETA_SHAPE = 0.6


def timestep_grid(count: int, total: int, spacing: str, offset: int) -> Tensor:
    """`count` descending timesteps below `total`, float64.

    leading, trailing, linspace: Lin et al. 2023, table 2, with steps of total / count rather than total // count, so
    that leading starts within total / count of the highest timestep. sgm_uniform: evenly spaced from the highest
    timestep to 0, without 0. simple: every (total / count)-th from the highest. A single step is at the highest.
    Raises InputError for an unknown name.
    """
    if spacing not in TIMESTEP_GRIDS:
        known = [*TIMESTEP_GRIDS, *SIGMA_GRIDS]
        raise InputError(f"spacing={spacing!r} is unknown; {did_you_mean(spacing, known)}")
    return torch.from_numpy(TIMESTEP_GRIDS[spacing](count, total, offset).astype(np.float64))


def _leading(count: int, total: int, offset: int) -> np.ndarray:
    if count == 1:
        return np.array([total - 1])
    steps = np.round(np.arange(count)[::-1] * (total / count))
    return steps + min(offset, total - 1 - steps[0])


def _trailing(count: int, total: int, _: int) -> np.ndarray:
    return np.round(total - np.arange(count) * (total / count)) - 1


def _linspace(count: int, total: int, _: int) -> np.ndarray:
    return np.linspace(total - 1, 0, count).round()


def _sgm_uniform(count: int, total: int, _: int) -> np.ndarray:
    return np.linspace(total - 1, 0, count + 1)[:-1]


def _simple(count: int, total: int, _: int) -> np.ndarray:
    return total - 1 - np.floor(np.arange(count) * (total / count))


def _lcm(count: int, total: int, _: int) -> np.ndarray:
    """A subset of the 50 timesteps that latent consistency models are distilled on (Luo et al. 2023)."""
    most = min(LCM_STEPS, total)
    if count > most:
        raise InputError(f"num_inference_steps={count} (--steps) must be at most {most} with sampler 'lcm'; try 4")
    origin = (np.round(np.arange(1, most + 1) * (total / most)) - 1)[::-1]
    return origin[np.floor(np.linspace(0, most, count, endpoint=False)).astype(int)]


def karras(count: int, high: float, low: float, rho: float = 7.0) -> Tensor:
    """Evenly spaced in the rho-th root of sigma / alpha (Karras et al. 2022, eq. 5)."""
    ends = high ** (1 / rho), low ** (1 / rho)
    return (ends[0] + torch.linspace(0, 1, count, dtype=torch.float64) * (ends[1] - ends[0])) ** rho


def exponential(count: int, high: float, low: float) -> Tensor:
    """Evenly spaced in log(sigma / alpha)."""
    return torch.linspace(np.log(high), np.log(low), count, dtype=torch.float64).exp()


def beta(count: int, high: float, low: float) -> Tensor:
    """Quantiles of a beta distribution over the timesteps (Lee et al. 2024, "Beta Sampling is All You Need")."""
    quantiles = torch.from_numpy(_beta_quantiles(1 - np.linspace(0, 1, count)))
    return low + quantiles * (high - low)


def _beta_quantiles(probabilities: np.ndarray) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6): with x = sin^2 a the density is (sin a cos a)^0.2, integrated numerically over a."""
    angle = np.linspace(0, np.pi / 2, 200_001)
    middle = (angle[1:] + angle[:-1]) / 2
    cumulative = np.concatenate([[0], np.cumsum((np.sin(middle) * np.cos(middle)) ** (2 * BETA_SHAPE - 1))])
    return np.sin(np.interp(probabilities, cumulative / cumulative[-1], angle)) ** 2


def _aligned(name: str) -> Callable[[int, float, float], Tensor]:
    """The published levels, log-linearly interpolated for other counts, and stretched to the schedule's range."""

    def levels(count: int, high: float, low: float) -> Tensor:
        top, bottom = np.log(ALIGNED_RANGE)
        place = (np.log(ALIGNED[name]) - bottom) / (top - bottom)  # 1 is the noisiest level, 0 the last
        positions = np.linspace(0, len(place) - 1, count) if count > 1 else np.zeros(1)
        found = np.interp(positions, np.arange(len(place)), place)
        return torch.from_numpy(high**found * low ** (1 - found))

    return levels


TIMESTEP_GRIDS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "lcm": _lcm,
}
SIGMA_GRIDS: dict[str, Callable[[int, float, float], Tensor]] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    **{name: _aligned(name) for name in ALIGNED},
}
SPACINGS = tuple(name for name in (*TIMESTEP_GRIDS, *SIGMA_GRIDS) if name != "lcm")
