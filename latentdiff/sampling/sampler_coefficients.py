"""Sampler tables: one float64 row of coefficients per network evaluation, computed from the noise levels visited.

    latents = c_base * base + c_latent * latents + sum_j c_j * x0[-j] + c_noise * noise

x0[-0] is the current prediction, x0[-1] to x0[-3] are earlier ones. `base` are latents that a row may store for later
rows, as methods with two evaluations per step need. Levels are (alpha, sigma) with x_t = alpha * x0 + sigma * noise;
the last level is the end of sampling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentdiff.sampling.schedule import Grid

COLUMNS = ("base", "latent", "x0", "x0_1", "x0_2", "x0_3", "noise", "rebase")


def _table(latent: Tensor, x0: Sequence[Tensor], noise: Tensor | None = None) -> Tensor:
    """float64 [N, 8], in the order of `COLUMNS`."""
    table = torch.zeros(len(latent), len(COLUMNS), dtype=torch.float64)
    table[:, COLUMNS.index("latent")] = latent
    for lag, factors in enumerate(x0):
        table[:, COLUMNS.index("x0") + lag] = factors
    if noise is not None:
        table[:, COLUMNS.index("noise")] = noise
    return table


def ddim_table(grid: Grid, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16); eta=1 is the DDPM posterior (Ho et al. 2020, eq. 7).

    In variance-preserving coordinates Euler's method on the probability flow is eta=0, and Euler-ancestral eta=1.
    """
    a, a_next, s, s_next = grid.alphas[:-1], grid.alphas[1:], grid.sigmas[:-1], grid.sigmas[1:]
    # The variance of q(x_next | x, x0), written so that alpha = 0 and a clean last level need no special case.
    variance = (s_next / s).square() * (s.square() - (a * s_next / a_next).square())
    c_noise = eta * variance.clamp_min(0).sqrt()
    direction = (s_next.square() - c_noise.square()).clamp_min(0).sqrt() / s
    return _table(latent=direction, x0=[a_next - a * direction], noise=c_noise)


def heun_table(grid: Grid) -> Tensor:
    """Heun's method on the probability flow (Karras et al. 2022, alg. 1), for a grid that contains inner levels twice.

    A step predicts its end as DDIM does and keeps its start as the base; the evaluation at the predicted end corrects
    it. In y = x / alpha and r = sigma / alpha, with a step h in r, that is y' = (y + predicted) / 2 + h / 2 * d', where
    d' = (predicted - x0) / r'. The last step is of first order; from pure noise, where r is infinite, the correction
    takes the mean of both predictions of x0.
    """
    table = ddim_table(grid)
    for k in range(0, len(table) - 1, 2):
        a, a_next, s, s_next = grid.alphas[k], grid.alphas[k + 1], grid.sigmas[k], grid.sigmas[k + 1]
        if a == 0:
            base, latent, x0 = s_next / s / 2, torch.tensor(0.5), a_next / 2
        else:
            pull = (1 - s / a * a_next / s_next) / 2  # h / 2 / r'
            base, latent, x0 = a_next / a / 2, 0.5 + pull, -a_next * pull
        table[k, COLUMNS.index("rebase")] = 1
        table[k + 1] = 0
        for name, factor in (("base", base), ("latent", latent), ("x0", x0)):
            table[k + 1, COLUMNS.index(name)] = factor
    return table


def dpmpp_2m_table(grid: Grid) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, alg. 2); the first and last steps are of first order."""
    a_next, s, s_next = grid.alphas[1:], grid.sigmas[:-1], grid.sigmas[1:]
    gain = a_next * (1 - _decay(grid))
    extra = gain * _slope(grid) / 2
    return _table(latent=s_next / s, x0=[gain + extra, -extra])


def dpmpp_2m_sde_table(grid: Grid) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, eq. 18 and the midpoint form of its implementation)."""
    a_next, s, s_next = grid.alphas[1:], grid.sigmas[:-1], grid.sigmas[1:]
    decay = _decay(grid)
    gain = a_next * (1 - decay.square())
    extra = gain * _slope(grid) / 2
    noise = s_next * (1 - decay.square()).sqrt()
    return _table(latent=s_next / s * decay, x0=[gain + extra, -extra], noise=noise)


def lcm_table(grid: Grid, timestep_scaling: float = 10.0, sigma_data: float = 0.5) -> Tensor:
    """Multistep consistency sampling (Luo et al. 2023, alg. 3): x0 through its boundary condition, then new noise."""
    time = grid.timesteps * timestep_scaling
    c_skip = sigma_data**2 / (time.square() + sigma_data**2)
    c_out = time / (time.square() + sigma_data**2).sqrt()
    return _table(latent=grid.alphas[1:] * c_skip, x0=[grid.alphas[1:] * c_out], noise=grid.sigmas[1:])


def _decay(grid: Grid) -> Tensor:
    """exp(-h), where h is the step in lambda = log(alpha / sigma); 0 if the step starts at pure noise or ends at x0."""
    return grid.sigmas[1:] * grid.alphas[:-1] / (grid.alphas[1:] * grid.sigmas[:-1])


def _slope(grid: Grid) -> Tensor:
    """h / h_previous, the weight of the backward difference; 0 at the first and last step, and after infinite ones."""
    h = -_decay(grid).log()
    slope = torch.zeros_like(h)
    slope[1:-1] = h[1:-1] / h[:-2]
    return slope
