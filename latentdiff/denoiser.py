"""Predict x0 from a network and its conditioning, with separate guidance for each row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from latentdiff.config.schedule import ScheduleConfig
from latentdiff.device_transfer import send
from latentdiff.models.conditioning import Conditioning, PromptConditioning, concatenate
from latentdiff.sampling.loop import Denoiser, Levels, SamplerState, column
from latentdiff.sampling.schedule import Schedule

Network = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""A `DenoisingNetwork` or a replacement of one: sample, timesteps [B] and conditioning to the output."""


@dataclass(frozen=True)
class NetworkDenoiser:
    """Converts a network's output (noise, velocity, x0 or flow) to x0.

    dtype: of the network. batch: pad batches to this many evaluations with copies of the last, so that the result of a
    row is bit-identical whichever rows share its batch (on one machine, with one number of threads and kernel variant).
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
    return send(torch.tensor(levels.timesteps), device)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022) for timesteps in [low, high] (Kynkaanniemi et al. 2024, sec. 3).

    scale: s in u + s * (c - u). image_scale: the second guidance scale of InstructPix2Pix.
    """

    scale: float
    low: float = 0.0
    high: float = float("inf")
    image_scale: float = 1.0

    def applies(self, timestep: float) -> bool:
        return self.low <= timestep <= self.high


@dataclass(frozen=True)
class Known:
    """The part of an image that inpainting preserves. latents: [C, h, w], clean; mask: [1, h, w], 1 where repainted."""

    latents: Tensor
    mask: Tensor

    def keep(self, x0: Tensor) -> Tensor:
        """x0 [C, h, w] with the known part replaced."""
        return torch.lerp(self.latents, x0, self.mask)


class Term(NamedTuple):
    """One network evaluation of a row, and the factor of its prediction in the row's x0."""

    factor: float
    conditioning: Conditioning


@dataclass(frozen=True)
class Row:
    """One image being sampled: its state and its conditioning.

    positive: one prompt, or several that AND joins. negative: the unconditional prompt; None samples without guidance,
    in one evaluation per step instead of two. without_image: the third evaluation of InstructPix2Pix, the negative
    prompt without the input image. known: the part of the image that inpainting keeps.
    """

    state: SamplerState
    positive: tuple[PromptConditioning, ...]
    negative: PromptConditioning | None = None
    guidance: Guidance = Guidance(1.0)
    without_image: PromptConditioning | None = None
    known: Known | None = None

    @property
    def result(self) -> Tensor:
        """The latents [C, h, w]; at the end of a plan, without noise in the known part."""
        return self.known.keep(self.state.latents) if self.known and self.state.finished else self.state.latents

    def terms(self, timestep: float) -> list[Term]:
        """The evaluations at a timestep, whose weighted sum is x0; evaluations with a factor of 0 are omitted.

        With one prompt c and no image it is u + s * (c - u) (Ho & Salimans 2022, eq. 6, with s = 1 + w), with several
        u + s * sum_i w_i * (c_i - u) (Liu et al. 2022, eq. 11), and an evaluation e without the input image adds
        (t - 1) * (u - e) (Brooks et al. 2023, eq. 3). x0 is linear in the network's output.
        """
        if self.negative is None:
            return [Term(prompt.weight, prompt.at(timestep)) for prompt in self.positive]
        applies = self.guidance.applies(timestep)
        scale = self.guidance.scale if applies else 1.0
        image_scale = self.guidance.image_scale if applies and self.without_image else 1.0
        weights = [scale * prompt.weight for prompt in self.positive]
        factors = [1 - image_scale, image_scale - sum(weights), *weights]
        prompts = [self.without_image, self.negative, *self.positive]
        used = [(factor, prompt) for factor, prompt in zip(factors, prompts, strict=True) if factor and prompt]
        return [Term(factor, prompt.at(timestep)) for factor, prompt in used]

    @property
    def evaluations(self) -> int:
        """The number of network evaluations in the next step."""
        return len(self.terms(self.state.timestep))

    @property
    def tokens(self) -> int:
        """The largest number of tokens among the evaluations of the next step."""
        return max(term.conditioning.tokens for term in self.terms(self.state.timestep))


class GuidedDenoiser:
    """Applies each row's own guidance: x0 is the weighted sum of the row's evaluations at its timestep."""

    def __init__(self, denoiser: NetworkDenoiser, rows: Sequence[Row]) -> None:
        self.denoiser, self.rows = denoiser, rows
        self._joined: dict[tuple[int, ...], Conditioning] = {}

    def __call__(self, latents: Tensor, levels: Levels) -> Tensor:
        terms = [row.terms(timestep) for row, timestep in zip(self.rows, levels.timesteps, strict=True)]
        counts = [len(own) for own in terms]
        order = [(k, term) for j in range(max(counts)) for k, own in enumerate(terms) for term in own[j : j + 1]]
        x0 = self._evaluate(latents, levels, [k for k, _ in order], [term.conditioning for _, term in order])
        weighted = column([term.factor for _, term in order], x0) * x0
        if min(counts) == max(counts):
            return _sum(weighted.split(len(counts)))
        parts = [[w for (k, _), w in zip(order, weighted, strict=True) if k == row] for row in range(len(counts))]
        return torch.stack([_sum(part) for part in parts])

    def _evaluate(self, latents: Tensor, levels: Levels, rows: list[int], conditioning: list[Conditioning]) -> Tensor:
        """x0 for the given rows of the latents, each with its own conditioning; rows may be repeated."""
        before, self._joined = self._joined, {}
        groups = token_groups([c.tokens for c in conditioning], repeat=self.denoiser.batch is None)
        found: dict[int, Tensor] = {}
        for tokens, group in groups.items():
            chosen = [conditioning[k] for k in group]
            key = (tokens, *map(id, chosen))  # of rows that `self.rows` keeps alive
            if (joined := before.get(key)) is None:
                joined = concatenate([c.repeat_tokens(tokens // c.tokens) for c in chosen])
            self._joined[key] = joined
            own = [rows[k] for k in group]
            x0 = self.denoiser(_take(latents, own), levels.rows(own), joined)
            if len(groups) == 1:
                return x0
            found |= dict(zip(group, x0, strict=True))
        return torch.stack([found[k] for k in range(len(rows))])


def token_groups(counts: Sequence[int], repeat: bool) -> dict[int, list[int]]:
    """Indices of evaluations that share a batch, by their number of tokens. repeat: divisors join a larger number.

    Attention to repeated tokens gives the same result up to rounding, so an image does not depend on the others in its
    batch; without repetition the result is bit-identical.
    """
    groups: dict[int, list[int]] = {}
    for k in sorted(range(len(counts)), key=lambda k: -counts[k]):
        fitting = (size for size in groups if size == counts[k] or (repeat and size % counts[k] == 0))
        groups.setdefault(next(fitting, counts[k]), []).append(k)
    return {size: sorted(group) for size, group in groups.items()}


def _take(latents: Tensor, rows: list[int]) -> Tensor:
    """latents[rows], without an index that would be copied to the device."""
    times = len(rows) // len(latents)
    if rows == list(range(len(latents))) * times:
        return latents if times == 1 else torch.cat([latents] * times)
    return torch.stack([latents[k] for k in rows])


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """Sum in the same order for any number of rows, so that results are bit-identical."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def bounded(denoiser: Denoiser, config: ScheduleConfig) -> Denoiser:
    """Limit the predicted x0 as the scheduler's config requires; the denoiser itself if it requires nothing.

    clip_sample: clamp to a fixed range. thresholding: clamp to a quantile of |x0| of each row and divide by it (Saharia
    et al. 2022, sec. 2.3). DDIM then uses the limited x0, as in Ho et al.'s code; diffusers keeps the original noise.
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
    """Inpainting with any model: replace the known part of x0 in rows that have one.

    With a deterministic sampler, the known part then keeps its initial noise, which corresponds to adding noise to it
    again at each level (Lugmayr et al. 2022, eq. 8).
    """
    if not any(row.known for row in rows):
        return denoiser

    def with_known(latents: Tensor, levels: Levels) -> Tensor:
        x0 = denoiser(latents, levels)
        return torch.stack([row.known.keep(one) if row.known else one for row, one in zip(rows, x0, strict=True)])

    return with_known
