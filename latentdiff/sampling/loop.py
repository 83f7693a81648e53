"""The sampling loop: the state of one image, `step`, which advances states, and `sample`, which repeats it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentdiff.device_transfer import send
from latentdiff.errors import InputError, NonFiniteError
from latentdiff.sampling.samplers import EARLIER, Plan, Update
from latentdiff.sampling.seeds import draw_noise


@dataclass(frozen=True)
class SamplerState:
    """The immutable state of sampling one image; `step` returns the next state.

    latents: [C, h, w]. history: the latest predictions of x0, newest first. base: see `sampler_coefficients`.
    generator: draws the noise of the image on the CPU, so that it is the same on every device.
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
    return send(torch.tensor(values, dtype=like.dtype), like.device).view(-1, *[1] * (like.ndim - 1))


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


class FiniteWatch:
    """A callback that records whether all latents are finite, and does not synchronise the device until `check`."""

    def __init__(self, callback: Callback | None) -> None:
        self.callback = callback
        self.flags: list[Tensor] = []

    def __call__(self, info: StepInfo) -> bool | None:
        self.flags.append(torch.isfinite(info.latents).all())
        return self.callback(info) if self.callback else None

    def check(self) -> None:
        """Raise NonFiniteError for the first step whose latents were not finite."""
        finite = torch.stack(self.flags).tolist() if self.flags else []
        if not all(finite):
            step = finite.index(False) + 1
            raise NonFiniteError(
                f"the latents are not finite from step {step} of {len(finite)} on; use dtype='float32' or less guidance"
            )
