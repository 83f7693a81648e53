"""Sampling: the plan of a run, the state of one image, the step that advances states, and the sampling loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from latentdiff.device_transfer import send
from latentdiff.errors import InputError, check_number, did_you_mean
from latentdiff.sampling.sampler_tables import (
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


@dataclass(frozen=True)
class SamplerState:
    """The immutable state of sampling one image; `step` returns the next state.

    latents: [C, h, w]. history: the latest predictions of x0, newest first. base: see `sampler_tables`. generator:
    draws the noise of the image on the CPU, so that it is the same on every device.
    """

    plan: Plan
    latents: Tensor
    generator: torch.Generator
    position: int = 0
    history: tuple[Tensor, ...] = ()
    base: Tensor | None = None

    @property
    def finished(self) -> bool:
        return self.position >= len(self.plan)

    @property
    def timestep(self) -> float:
        return self.plan.timesteps[self.position]

    @property
    def update(self) -> Update:
        return self.plan.table[self.position]


@dataclass(frozen=True)
class Levels:
    """The noise level of each row of a batch; alphas and sigmas may be omitted if x0 needs no conversion."""

    timesteps: Sequence[float]
    alphas: Sequence[float]
    sigmas: Sequence[float]

    @classmethod
    def of(cls, states: Sequence[SamplerState]) -> "Levels":
        return cls(
            [state.timestep for state in states],
            [state.plan.alphas[state.position] for state in states],
            [state.plan.sigmas[state.position] for state in states],
        )

    def rows(self, chosen: Sequence[int]) -> "Levels":
        """The levels of the given rows, which may be repeated."""
        return Levels(*([values[k] for k in chosen] for values in (self.timesteps, self.alphas, self.sigmas)))


Denoiser = Callable[[Tensor, Levels], Tensor]
"""Latents [B, C, h, w] and their levels to predicted x0 [B, C, h, w]."""


def step(denoiser: Denoiser, states: Sequence[SamplerState]) -> tuple[list[SamplerState], Tensor]:
    """Advance each state by one evaluation, and return the next states and the predicted x0 [B, C, h, w].

    States may be at different positions of different plans. Raises InputError for latents of different shapes, and for
    finished states.
    """
    if len(shapes := {tuple(state.latents.shape) for state in states}) != 1:
        raise InputError(f"latents of shapes {sorted(shapes)} cannot share a batch; step each shape separately")
    if any(state.finished for state in states):
        raise InputError("a state at the end of its plan cannot be stepped; use its latents, or start a new run")
    latents = torch.stack([state.latents for state in states])
    x0 = denoiser(latents, Levels.of(states)).to(latents.dtype)
    bases = [state.latents if state.update.rebase else state.base for state in states]
    after = _apply([state.update for state in states], latents, bases, x0, states)
    return [_advance(*one) for one in zip(states, after, x0, bases, strict=True)], x0


def _apply(
    updates: Sequence[Update],
    latents: Tensor,
    bases: Sequence[Tensor | None],
    x0: Tensor,
    states: Sequence[SamplerState],
) -> Tensor:
    """Apply the rows of the tables. Terms that no row uses are not computed; rows without noise draw none."""
    out = column([u.latent for u in updates], latents) * latents + column([u.x0[0] for u in updates], x0) * x0
    for lag in range(1, EARLIER + 1):
        factors = [u.x0[lag] for u in updates]
        if any(factors):
            earlier = _stack([s.history[lag - 1] if f else None for s, f in zip(states, factors, strict=True)], x0)
            out = out + column(factors, x0) * earlier
    if any(factors := [u.base for u in updates]):
        out = out + column(factors, x0) * _stack([b if f else None for b, f in zip(bases, factors, strict=True)], x0)
    if any(factors := [u.noise for u in updates]):
        generators = [s.generator if f else None for s, f in zip(states, factors, strict=True)]
        out = out + column(factors, x0) * draw_noise(generators, x0[0].shape, x0)
    return out


def _advance(state: SamplerState, latents: Tensor, x0: Tensor, base: Tensor | None) -> SamplerState:
    history = (x0, *state.history)[:EARLIER]
    return replace(state, latents=latents, position=state.position + 1, history=history, base=base)


def column(values: Sequence[float], like: Tensor) -> float | Tensor:
    """A factor for each row of `like` [B, ...]; a number if all rows agree, which needs no copy to the device."""
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.ndim - 1))


def draw_noise(generators: Sequence[torch.Generator | None], shape: torch.Size, like: Tensor) -> Tensor:
    """Noise [B, *shape] with the dtype and device of `like`, drawn on the CPU by one generator per image; 0 for None.

    For CUDA it is copied asynchronously from pinned memory.
    """
    zeros = torch.zeros(shape)
    drawn = torch.stack([zeros if g is None else torch.randn(shape, generator=g) for g in generators])
    return send(drawn, like.device).to(like)


def _stack(rows: Sequence[Tensor | None], like: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(like[0]) if row is None else row for row in rows])


@dataclass(frozen=True)
class StepInfo:
    """Argument of callbacks after each step: `step` of `steps`, the timestep at its start, latents and predicted x0.

    latents, x0: [B, C, h, w].
    """

    step: int
    steps: int
    timestep: float
    latents: Tensor
    x0: Tensor


Callback = Callable[[StepInfo], bool | None]
"""Called after each step; returns True to stop the run, None or False to continue."""


def sample(
    denoiser: Denoiser, states: Sequence[SamplerState], callback: Callback | None = None
) -> tuple[list[SamplerState], Tensor]:
    """Step states with equal numbers of remaining steps to the end, or until the callback returns True.

    Returns the states and the last predicted x0 [B, C, h, w]. Raises InputError for states with different remaining
    steps, and for a callback that returns anything but a bool or None.
    """
    states = list(states)
    lengths, positions = {len(state.plan) for state in states}, {state.position for state in states}
    if len(lengths) != 1 or len(positions) != 1:
        raise InputError(f"states at {positions} of {lengths} steps do not end at the same step; use step()")
    x0 = torch.stack([state.latents for state in states])
    while not states[0].finished:
        timestep = states[0].timestep
        states, x0 = step(denoiser, states)
        if callback is None:
            continue
        latents = torch.stack([state.latents for state in states])
        stop = callback(StepInfo(states[0].position, len(states[0].plan), timestep, latents, x0))
        if stop not in (None, False, True):
            raise InputError(f"the callback returned {stop!r}; return True to stop, or None to continue")
        if stop:
            break
    return states, x0
