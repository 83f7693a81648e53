"""The samplers by name, and `plan`, which turns one into the noise levels and coefficients of a sampling run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from latentdiff.errors import InputError, check_number, did_you_mean
from latentdiff.sampling.sampler_coefficients import (
    ddim_table,
    dpmpp_2m_sde_table,
    dpmpp_2m_table,
    heun_table,
    lcm_table,
)
from latentdiff.sampling.schedule import Grid, Schedule
from latentdiff.sampling.spacings import SPACINGS

EARLIER = 3  # predictions of x0 that a row may use in addition to the current one


class Update(NamedTuple):
    """A row of a sampler's table. x0: factors of the current prediction and of the `EARLIER` previous ones.

    rebase: the current latents become the base before the row is applied.
    """

    base: float
    latent: float
    x0: tuple[float, ...]
    noise: float
    rebase: bool


@dataclass(frozen=True)
class Sampler:
    """A sampler: its table, whether it always ends at x0, and its own spacing if it has one.

    evaluations: network evaluations per step; with two, the grid contains each inner level twice.
    """

    table: Callable[[Grid], Tensor]
    clean: bool = True
    spacing: str | None = None
    evaluations: int = 1


SAMPLERS = {
    "ddim": Sampler(ddim_table, clean=False),
    "ddpm": Sampler(lambda grid: ddim_table(grid, eta=1.0)),
    "euler": Sampler(ddim_table),
    "euler_ancestral": Sampler(lambda grid: ddim_table(grid, eta=1.0)),
    "heun": Sampler(heun_table, evaluations=2),
    "dpmpp_2m": Sampler(dpmpp_2m_table),
    "dpmpp_2m_sde": Sampler(dpmpp_2m_sde_table),
    "lcm": Sampler(lcm_table, spacing="lcm"),
}


@dataclass(frozen=True)
class Plan:
    """The timesteps, noise levels and coefficients of a sampling run with N evaluations.

    timesteps: N. alphas, sigmas: N + 1 levels, of which the last is the end of sampling. table: N rows.
    """

    timesteps: list[float]
    alphas: list[float]
    sigmas: list[float]
    table: list[Update]

    def __len__(self) -> int:
        return len(self.table)

    def noisy(self, x0: Tensor, noise: Tensor, position: int = 0) -> Tensor:
        """x0 with noise of the level at a position from 0 to N, to start sampling in the middle of the plan."""
        return self.alphas[position] * x0 + self.sigmas[position] * noise


def plan(
    schedule: Schedule,
    sampler: str,
    num_inference_steps: int,
    eta: float = 0.0,
    spacing: str | None = None,
    skip: int = 0,
) -> Plan:
    """Plan a sampling run. spacing: the schedule's if None. skip: number of initial steps to omit.

    Raises InputError for an unknown sampler or spacing, steps out of range, or an eta that the sampler does not use.
    """
    if not sampler:
        raise InputError(f"the model's scheduler: {schedule.config.unsupported}; use for example sampler='dpmpp_2m'")
    if sampler not in SAMPLERS:
        raise InputError(f"sampler={sampler!r} is unknown; {did_you_mean(sampler, SAMPLERS)}")
    if not 0 <= check_number(eta, "eta") <= 1:
        raise InputError(f"eta={eta} must be from 0 to 1; 0 is deterministic")
    if eta and sampler != "ddim":
        raise InputError(f"eta={eta} is only used by sampler='ddim', not {sampler!r}; use ddim, or omit eta")
    chosen = SAMPLERS[sampler]
    if spacing and (chosen.spacing or spacing not in SPACINGS):
        known = [chosen.spacing] if chosen.spacing else SPACINGS
        raise InputError(f"spacing={spacing!r} cannot be used with sampler {sampler!r}; {did_you_mean(spacing, known)}")
    grid = schedule.grid(num_inference_steps, chosen.spacing or spacing, chosen.clean)
    grid = Grid(grid.timesteps[skip:], grid.alphas[skip:], grid.sigmas[skip:])
    if chosen.evaluations == 2:
        grid = _inner_levels_twice(grid)
    table = ddim_table(grid, eta) if sampler == "ddim" else chosen.table(grid)
    rows = [Update(base, latent, tuple(x0), noise, bool(rebase)) for base, latent, *x0, noise, rebase in table.tolist()]
    return Plan(grid.timesteps.tolist(), grid.alphas.tolist(), grid.sigmas.tolist(), rows)


def _inner_levels_twice(grid: Grid) -> Grid:
    """Levels 0, 1, 1, 2, 2, … and the last: each inner level is evaluated at the end of a step and at the next one."""
    count = len(grid.timesteps)
    twice = torch.arange(count).repeat_interleave(2)[1:]
    ends = torch.cat([twice, torch.tensor([count])])
    return Grid(grid.timesteps[twice], grid.alphas[ends], grid.sigmas[ends])
