"""Predict x0 from a network and its conditioning, with guidance for each row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff.config.schedule import ScheduleConfig
from latentdiff.models.conditioning import Conditioning, concatenate
from latentdiff.samplers import Denoiser, Levels, SamplerState, column
from latentdiff.schedule import Schedule

Network = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""A `DenoisingNetwork`, or what stands in for one: sample, timesteps [B], conditioning to the network's output."""


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network's output, be it noise, velocity, x0 or flow, converted to x0 by the schedule.

    dtype: of the network. batch: evaluations are padded with copies of the last to this many, so that a row is computed
    to the same bits whichever rows share its batch (on one machine, with one number of threads and kernel variant).
    """

    network: Network
    schedule: Schedule
    dtype: torch.dtype
    batch: int | None = None

    def __call__(self, latents: Tensor, levels: Levels, conditioning: Conditioning) -> Tensor:
        """latents [B, C, h, w] to x0 [B, C, h, w], float32."""
        c_sample, c_output = (column(c, latents) for c in self._x0_coefficients(levels))
        sample, timesteps = latents.to(self.dtype), _timesteps(levels, latents.device)
        if conditioning.channels is not None:
            sample = torch.cat([sample, conditioning.channels.to(sample)], dim=1)
        output = self._padded(sample, timesteps, conditioning) if self.batch else None
        if output is None:
            output = self.network(sample, timesteps, conditioning)
        return c_sample * latents + c_output * output.to(latents.dtype)

    def _x0_coefficients(self, levels: Levels) -> tuple[list[float], list[float]]:
        numbers = (torch.tensor(values, dtype=torch.float64) for values in (levels.alphas, levels.sigmas))
        c_sample, c_output = self.schedule.x0_coefficients(*numbers)
        return c_sample.tolist(), c_output.tolist()

    def _padded(self, sample: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor | None:
        assert self.batch is not None
        if (missing := self.batch - len(sample)) <= 0:
            return None
        conditioning = concatenate([conditioning, *[conditioning[-1:]] * missing])
        sample, timesteps = (torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in (sample, timesteps))
        return self.network(sample, timesteps, conditioning)[:-missing]


def _timesteps(levels: Levels, device: torch.device) -> Tensor:
    count, first = len(levels.timesteps), levels.timesteps[0]
    if len(set(levels.timesteps)) == 1:
        return torch.full((count,), first, device=device)
    return torch.tensor(levels.timesteps, device=device)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022), at timesteps from `low` to `high` (Kynkaanniemi et al. 2024).

    scale: s in u + s * (c - u). The interval is the paper's in sec. 3. image_scale: InstructPix2Pix's second guidance.
    """

    scale: float
    low: float = 0.0
    high: float = float("inf")
    image_scale: float = 1.0

    def applies(self, timestep: float) -> bool:
        return self.low <= timestep <= self.high


@dataclass(frozen=True)
class Known:
    """The part of an image that inpainting keeps. latents: [C, h, w], clean; mask: [1, h, w], 1 where repainted."""

    latents: Tensor
    mask: Tensor

    def keep(self, x0: Tensor) -> Tensor:
        """x0 [C, h, w] with the known part replaced."""
        return torch.lerp(self.latents, x0, self.mask)


@dataclass(frozen=True)
class Row:
    """One image being sampled: where it stands, and what conditions it, one row each.

    negative: the unconditional row; None samples without guidance, in one evaluation per step instead of two.
    without_image: the third evaluation of InstructPix2Pix, the negative prompt without the input image.
    known: the part of the image that inpainting keeps.
    """

    state: SamplerState
    positive: Conditioning
    negative: Conditioning | None = None
    guidance: Guidance = Guidance(1.0)
    without_image: Conditioning | None = None
    known: Known | None = None

    @property
    def result(self) -> Tensor:
        """Its latents [C, h, w]; at the end of a plan, the known part without the noise that some plans end with."""
        return self.known.keep(self.state.latents) if self.known and self.state.finished else self.state.latents

    @property
    def guided(self) -> bool:
        """Whether the next step takes two evaluations."""
        return self.negative is not None and self.guidance.applies(self.state.timestep)


class GuidedDenoiser:
    """Guidance for each row by itself: x0 = u + s * (c - u) of the rows that are guided at their timestep.

    It is the sum of Ho & Salimans (2022, eq. 6, with s = 1 + w): x0 is linear in the network's output. A batch holds
    the unconditional evaluations first, then those of all rows with their prompt. Rows with an evaluation without image
    e add (t - 1) * (u - e), so that x0 = e + t * (u - e) + s * (c - u) (Brooks et al. 2023, eq. 3).
    """

    def __init__(self, denoiser: NetworkDenoiser, rows: Sequence[Row]) -> None:
        self.denoiser, self.rows = denoiser, rows
        self._last: tuple[list[int], Conditioning] | None = None

    def __call__(self, latents: Tensor, levels: Levels) -> Tensor:
        guided = [k for k, t in enumerate(levels.timesteps) if self._is_guided(k, t)]
        edited = [k for k in guided if self.rows[k].without_image is not None]
        evaluated = [*edited, *guided, *range(len(latents))]
        if len(guided) == len(latents) and not edited:
            latents = torch.cat([latents, latents])
        elif guided:
            latents = latents[evaluated]
        x0 = self.denoiser(latents, levels.rows(evaluated), self._conditioning(edited, guided))
        if not guided:
            return x0
        without_image, unconditional, conditional = x0.split([len(edited), len(guided), len(levels.timesteps)])
        scales = column([self.rows[k].guidance.scale for k in guided], unconditional)
        if len(guided) == len(conditional):
            combined = torch.lerp(unconditional, conditional, scales)
        else:
            combined = conditional
            combined[guided] = torch.lerp(unconditional, conditional[guided], scales)
        if edited:
            with_image = unconditional[[guided.index(k) for k in edited]]
            scales = column([self.rows[k].guidance.image_scale - 1 for k in edited], x0)
            combined[edited] += scales * (with_image - without_image)
        return combined

    def _is_guided(self, k: int, timestep: float) -> bool:
        row = self.rows[k]
        return row.negative is not None and row.guidance.applies(timestep)

    def _conditioning(self, edited: list[int], guided: list[int]) -> Conditioning:
        if self._last is None or self._last[0] != guided:
            others = [*(self.rows[k].without_image for k in edited), *(self.rows[k].negative for k in guided)]
            present = [conditioning for conditioning in others if conditioning is not None]
            self._last = guided, concatenate([*present, *(row.positive for row in self.rows)])
        return self._last[1]


def bounded(denoiser: Denoiser, config: ScheduleConfig) -> Denoiser:
    """Predictions kept within the range that a scheduler's file sets; the denoiser itself where it sets none.

    clip_sample: to a fixed range. thresholding: to a quantile of |x0| of each row, and divided by it (Saharia et al.
    2022, sec. 2.3). DDIM then follows the bounded x0, as in Ho et al.'s code; diffusers keeps the unbounded noise.
    """
    if not config.thresholding and not config.clip_sample:
        return denoiser

    def within_bounds(latents: Tensor, levels: Levels) -> Tensor:
        x0 = denoiser(latents, levels)
        if not config.thresholding:
            return x0.clamp(-config.clip_sample_range, config.clip_sample_range)
        bound = x0.flatten(1).abs().quantile(config.dynamic_thresholding_ratio, dim=1)
        bound = bound.clamp(1, max(1.0, config.sample_max_value)).view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-bound, bound) / bound

    return within_bounds


def keep_known(denoiser: Denoiser, rows: Sequence[Row]) -> Denoiser:
    """The known part of x0 replaced in rows that have one, which is inpainting with any model; else the denoiser.

    A deterministic sampler then follows the noise that the known part was given, as the published method of adding
    noise to it again at each level does (Lugmayr et al. 2022, eq. 8).
    """
    if not any(row.known for row in rows):
        return denoiser

    def with_known(latents: Tensor, levels: Levels) -> Tensor:
        x0 = denoiser(latents, levels)
        return torch.stack([row.known.keep(one) if row.known else one for row, one in zip(rows, x0, strict=True)])

    return with_known
