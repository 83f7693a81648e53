"""Every sampler is a table: one row of four coefficients a step, a pure function of the levels visited.

    latents = c_latent * latents + c_x0 * x0 + c_prev * x0_prev + c_noise * noise

Levels are (alpha, sigma) with x_t = alpha * x0 + sigma * noise; the last one is where the run ends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff.errors import InputError, did_you_mean
from latentdiff.schedule import Grid, Schedule

Denoiser = Callable[[Tensor, float], Tensor]


def ddim_table(grid: Grid, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16); eta=1 is the DDPM posterior (Ho et al. 2020, eq. 7).

    In variance-preserving coordinates Euler's method on the probability flow is eta=0, and Euler-ancestral eta=1.
    """
    a, a_next, s, s_next = grid.alphas[:-1], grid.alphas[1:], grid.sigmas[:-1], grid.sigmas[1:]
    # The variance of q(x_next | x, x0), written so that alpha = 0 and a clean last level need no special case.
    variance = (s_next / s).square() * (s.square() - (a * s_next / a_next).square())
    c_noise = eta * variance.clamp_min(0).sqrt()
    direction = (s_next.square() - c_noise.square()).clamp_min(0).sqrt() / s
    return _table(c_latent=direction, c_x0=a_next - a * direction, c_noise=c_noise)


def dpmpp_2m_table(grid: Grid) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, alg. 2); the first and last steps are of first order."""
    a_next, s, s_next = grid.alphas[1:], grid.sigmas[:-1], grid.sigmas[1:]
    gain = a_next * (1 - _decay(grid))
    extra = gain * _slope(grid) / 2
    return _table(c_latent=s_next / s, c_x0=gain + extra, c_prev=-extra)


def dpmpp_2m_sde_table(grid: Grid) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, eq. 18 and the midpoint form of its implementation)."""
    a_next, s, s_next = grid.alphas[1:], grid.sigmas[:-1], grid.sigmas[1:]
    decay = _decay(grid)
    gain = a_next * (1 - decay.square())
    extra = gain * _slope(grid) / 2
    noise = s_next * (1 - decay.square()).sqrt()
    return _table(c_latent=s_next / s * decay, c_x0=gain + extra, c_prev=-extra, c_noise=noise)


def lcm_table(grid: Grid, timestep_scaling: float = 10.0, sigma_data: float = 0.5) -> Tensor:
    """Multistep consistency sampling (Luo et al. 2023, alg. 3): x0 through its boundary condition, then new noise."""
    time = grid.timesteps * timestep_scaling
    c_skip = sigma_data**2 / (time.square() + sigma_data**2)
    c_out = time / (time.square() + sigma_data**2).sqrt()
    return _table(c_latent=grid.alphas[1:] * c_skip, c_x0=grid.alphas[1:] * c_out, c_noise=grid.sigmas[1:])


def _decay(grid: Grid) -> Tensor:
    """exp(-h) with h the step in lambda = log(alpha / sigma); 0 where the step starts in noise or ends clean."""
    return grid.sigmas[1:] * grid.alphas[:-1] / (grid.alphas[1:] * grid.sigmas[:-1])


def _slope(grid: Grid) -> Tensor:
    """h / h_previous, the weight of the backward difference; 0 at the first step, the last, and after infinite ones."""
    h = -_decay(grid).log()
    slope = torch.zeros_like(h)
    slope[1:-1] = h[1:-1] / h[:-2]
    return slope


def _table(c_latent: Tensor, c_x0: Tensor, c_prev: Tensor | None = None, c_noise: Tensor | None = None) -> Tensor:
    """float64 [N, 4]."""
    zero = torch.zeros_like(c_latent)
    return torch.stack([c_latent, c_x0, zero if c_prev is None else c_prev, zero if c_noise is None else c_noise], 1)


@dataclass(frozen=True)
class Sampler:
    """A table, whether its run ends at x0 whatever the checkpoint says, and its own spacing if it has one."""

    table: Callable[[Grid], Tensor]
    clean: bool = True
    spacing: str | None = None


SAMPLERS = {
    "ddim": Sampler(ddim_table, clean=False),
    "ddpm": Sampler(lambda grid: ddim_table(grid, eta=1.0)),
    "euler": Sampler(ddim_table),
    "euler_ancestral": Sampler(lambda grid: ddim_table(grid, eta=1.0)),
    "dpmpp_2m": Sampler(dpmpp_2m_table),
    "dpmpp_2m_sde": Sampler(dpmpp_2m_sde_table),
    "lcm": Sampler(lcm_table, spacing="lcm"),
}


@dataclass(frozen=True)
class Plan:
    """All numbers of a run, known before it starts: timesteps [N], x0 coefficients [N, 2], sampler table [N, 4]."""

    timesteps: list[float]
    to_x0: list[tuple[float, float]]
    table: list[tuple[float, float, float, float]]


def plan(schedule: Schedule, sampler: str, num_inference_steps: int, eta: float = 0.0) -> Plan:
    """Lay out a run. Raises InputError for an unknown sampler, steps out of range, or an eta that nothing reads."""
    if sampler not in SAMPLERS:
        raise InputError(f"sampler={sampler!r} is unknown; {did_you_mean(sampler, SAMPLERS)}")
    if not 0 <= eta <= 1:
        raise InputError(f"eta={eta} must be from 0 to 1; 0 is deterministic")
    if eta and sampler != "ddim":
        raise InputError(f"eta={eta} is only read by sampler='ddim', not {sampler!r}; name that one, or leave eta at 0")
    chosen = SAMPLERS[sampler]
    grid = schedule.grid(num_inference_steps, chosen.spacing, chosen.clean)
    table = ddim_table(grid, eta) if sampler == "ddim" else chosen.table(grid)
    to_x0 = torch.stack(schedule.x0_coefficients(grid.alphas[:-1], grid.sigmas[:-1]), 1)
    return Plan(grid.timesteps.tolist(), [tuple(row) for row in to_x0.tolist()], [tuple(row) for row in table.tolist()])


def sample(
    denoiser: Denoiser,
    latents: Tensor,
    plan: Plan,
    noise: Callable[[], Tensor],
    callback: Callable[[int, int, Tensor], None] | None = None,
) -> Tensor:
    """Walk `latents` [B, C, h, w], kept in their own precision, from noise to x0 along the plan.

    denoiser(latents, timestep) gives the model's output; `noise()` draws like latents, only where the table asks;
    callback(step, steps, latents) is told after each step.
    """
    x0_prev = torch.zeros_like(latents)
    for step, (timestep, (c_sample, c_output), row) in enumerate(
        zip(plan.timesteps, plan.to_x0, plan.table, strict=True), 1
    ):
        c_latent, c_x0, c_prev, c_noise = row
        x0 = c_sample * latents + c_output * denoiser(latents, timestep).to(latents.dtype)
        latents = c_latent * latents + c_x0 * x0
        if c_prev:
            latents = latents + c_prev * x0_prev
        if c_noise:
            latents = latents + c_noise * noise()
        x0_prev = x0
        if callback:
            callback(step, len(plan.table), latents)
    return latents
