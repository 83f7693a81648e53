"""The score, the probability flow ODE and the likelihood of a model (Song et al. 2021), computed with its denoiser.

Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations" (arXiv 2011.13456).

A schedule is a table. Between two timesteps, variance-preserving levels are (cos a, sin a) and flow levels (1 - a, a),
with `a` interpolated linearly. Along a, the probability flow (eq. 13) is dx/da = alpha' x0 + sigma' noise: the velocity
of Salimans & Ho (2022, app. D), finite also where there is no signal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentdiff.errors import NonFiniteError
from latentdiff.sampling.loop import Denoiser, Levels
from latentdiff.sampling.schedule import Schedule

TOLERANCE = 1e-5

# Dormand & Prince (1980), table 2: nodes, stages, and the weights of order 5 less those of order 4.
NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
SMALLEST = 1e-9


@dataclass(frozen=True)
class Level:
    """A noise level, x = alpha * x0 + sigma * noise, at coordinate a, with the slopes of alpha and sigma along a."""

    timestep: float
    coordinate: float
    alpha: float
    sigma: float
    alpha_slope: float
    sigma_slope: float


def level_at(schedule: Schedule, timestep: float) -> Level:
    """The level of a timestep from 0 to T - 1, integer or fractional."""
    coordinates = _coordinates(schedule)
    return _level(schedule, float(np.interp(timestep, np.arange(len(coordinates)), coordinates)), timestep)


def score(denoiser: Denoiser, schedule: Schedule, x: Tensor, timestep: float) -> Tensor:
    """Gradient of log p_t at x [B, ...]: (alpha x0 - x) / sigma^2, with the predicted x0 (eq. 7; Vincent 2011)."""
    level = level_at(schedule, timestep)
    return (level.alpha * _x0(denoiser, x, level) - x) / level.sigma**2


def flow(
    denoiser: Denoiser, schedule: Schedule, x: Tensor, start: float, end: float, tolerance: float = TOLERANCE
) -> Tensor:
    """Integrate x [B, ...] from timestep `start` to `end` along the probability flow (eq. 13).

    From T - 1 to 0 this generates images, which retain the noise of timestep 0; from 0 to T - 1 it encodes images.
    """
    first, last = (level_at(schedule, timestep).coordinate for timestep in (start, end))
    return solve(_velocity(denoiser, schedule), x, first, last, tolerance)


def log_likelihood(
    denoiser: Denoiser,
    schedule: Schedule,
    x: Tensor,
    probes: Tensor,
    timestep: float = 0.0,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """log p_t(x) in nats, [B], of x [B, ...] at the noise level of `timestep`; the last level is taken as N(0, I).

    The divergence along the flow (eq. 39) is estimated with `probes` [K, B, ...], independent numbers of mean 0 and
    variance 1 (eq. 40; Hutchinson 1990), the same at every level.
    """
    velocity, shape = _velocity(denoiser, schedule), x.shape

    def both(state: Tensor, coordinate: float) -> Tensor:
        with torch.enable_grad():
            x = state[:, :-1].view(shape).detach().requires_grad_()
            speed = velocity(x, coordinate)
            divergence = torch.stack([_divergence(speed, x, probe) for probe in probes]).mean(0)
        return torch.cat([speed.detach().flatten(1), divergence[:, None]], 1)

    state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
    first, last = (level_at(schedule, t).coordinate for t in (timestep, schedule.config.num_train_timesteps - 1))
    noise, change = solve(both, state, first, last, tolerance).split([state.shape[1] - 1, 1], 1)
    return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1) + change[:, 0]


def _divergence(speed: Tensor, x: Tensor, probe: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(speed, x, probe, retain_graph=True)
    return (gradient * probe).flatten(1).sum(1)


def _velocity(denoiser: Denoiser, schedule: Schedule) -> Callable[[Tensor, float], Tensor]:
    coordinates = _coordinates(schedule)

    def velocity(x: Tensor, coordinate: float) -> Tensor:
        timestep = float(np.interp(coordinate, coordinates, np.arange(len(coordinates))))
        level = _level(schedule, coordinate, timestep)
        x0 = _x0(denoiser, x, level)
        return level.alpha_slope * x0 + level.sigma_slope * (x - level.alpha * x0) / level.sigma

    return velocity


def _x0(denoiser: Denoiser, x: Tensor, level: Level) -> Tensor:
    count = len(x)
    levels = Levels([level.timestep] * count, [level.alpha] * count, [level.sigma] * count)
    return denoiser(x, levels).to(x.dtype)


def _coordinates(schedule: Schedule) -> np.ndarray:
    """Ascending [T]: the angle of each level, or flow's own sigma."""
    if schedule.config.prediction_type == "flow":
        return schedule.sigmas.numpy()
    return torch.atan2(schedule.sigmas, schedule.alphas).numpy()


def _level(schedule: Schedule, coordinate: float, timestep: float) -> Level:
    if schedule.config.prediction_type == "flow":
        return Level(timestep, coordinate, 1 - coordinate, coordinate, -1.0, 1.0)
    cos, sin = math.cos(coordinate), math.sin(coordinate)
    return Level(timestep, coordinate, cos, sin, -sin, cos)


def solve(
    slope: Callable[[Tensor, float], Tensor], y: Tensor, start: float, end: float, tolerance: float = 1e-5
) -> Tensor:
    """y [B, ...] at `end`, with dy/dt = slope(y, t) from `start` on, in either direction.

    The pair of orders 5 and 4 of Dormand & Prince (1980, table 2); a step is accepted when the root mean
    square error of every row, relative to 1 + |y|, is below `tolerance`. Raises NonFiniteError if the step underflows.
    """
    t, step = start, (end - start) / 20
    first = slope(y, t)
    while t != end:
        step = end - t if abs(step) >= abs(end - t) else step
        slopes = [first]
        for node, weights in zip(NODES[1:], STAGES, strict=True):
            new = y + step * _sum(weights, slopes)
            slopes.append(slope(new, t + node * step))
        error = (step * _sum(ERROR, slopes) / (1 + torch.maximum(y.abs(), new.abs()))).flatten(1)
        size = float(error.square().mean(1).sqrt().max()) / tolerance
        if size <= 1:  # the last stage is the new value and its slope
            t, y, first = (end if step == end - t else t + step), new, slopes[-1]
        elif abs(step) < SMALLEST or not torch.isfinite(error).all():
            raise NonFiniteError(f"the step size underflows at {t:.6f}; raise the tolerance")
        step *= min(5.0, max(0.2, 0.9 * max(size, 1e-10) ** -0.2))
    return y


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return torch.stack(terms).sum(0)
