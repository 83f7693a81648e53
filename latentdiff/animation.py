"""Animations: interpolate between prompts and between seeds."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from latentdiff.denoiser import Row
from latentdiff.errors import InputError, check_integer
from latentdiff.inputs import read_inputs
from latentdiff.models.conditioning import Conditioning, PromptConditioning
from latentdiff.pipeline import LatentDiffusionPipeline
from latentdiff.sampling.interpolation import slerp
from latentdiff.sampling.loop import Callback

MOST_FRAMES = 100_000


def frame_count(key_frames: int, frames: int) -> int:
    """The number of frames of an animation, with `frames` from one key frame to the next. Raises InputError."""
    check_integer(frames, "frames", 1)
    if key_frames < 2:
        raise InputError("an animation requires two prompts, or a prompt and two seeds (--seed 1,2); add another")
    if (total := (key_frames - 1) * frames + 1) > MOST_FRAMES:
        raise InputError(f"frames={frames} makes {total} frames, more than {MOST_FRAMES}; use fewer")
    return total


def animate(
    pipe: LatentDiffusionPipeline,
    prompts: Sequence[str],
    seed: int | Sequence[int] | None = None,
    frames: int = 16,
    batch_size: int = 8,
    done: Collection[int] = (),
    callback: Callback | None = None,
    **arguments: Any,
) -> Iterator[tuple[int, Image.Image]]:
    """Generate the frames from the first prompt to the last; yields pairs of index and image.

    Prompts are key frames; prompt k has the seed of image k of a pipeline call. Between key frames, noise is
    interpolated on the sphere and conditioning linearly; noise that a sampler draws later is the same for all frames.
    frames: the number from one prompt to the next. done: indices of existing frames; batches of existing frames are
    skipped. arguments: of `read_inputs`. Raises InputError.
    """
    total = frame_count(len(prompts), frames)
    inputs = read_inputs(pipe.limits, list(prompts), seed=seed, **arguments)
    with pipe.use_adapters(inputs.prompts.loras):
        keys = pipe.start(inputs)
        for first in range(0, total, check_integer(batch_size, "batch_size", 1)):
            indices = range(first, min(first + batch_size, total))
            if all(index in done for index in indices):
                continue
            rows, _ = pipe.sample_rows([_frame(keys, index, frames) for index in indices], inputs, callback)
            images = pipe.finish(torch.stack([row.result for row in rows]), axes=inputs.seamless, tile=inputs.tile)
            yield from zip(indices, images, strict=True)


def _frame(keys: Sequence[Row], index: int, frames: int) -> Row:
    """The row of a frame before sampling: a key frame, or interpolated between two."""
    k, step = divmod(index, frames)
    row = keys[k] if step == 0 else between(keys[k], keys[k + 1], step / frames)
    generator = torch.Generator()
    generator.set_state(keys[0].state.generator.get_state())
    return replace(row, state=replace(row.state, generator=generator))


def between(first: Row, second: Row, t: float) -> Row:
    """Interpolate two rows before their first step, with t from 0 to 1. Raises InputError for AND and schedules."""
    latents = slerp(first.state.latents, second.state.latents, t)
    positive = PromptConditioning.constant(mix(_only(first), _only(second), t))
    return replace(first, state=replace(first.state, latents=latents), positive=(positive,))


def mix(first: Conditioning, second: Conditioning, t: float) -> Conditioning:
    """Interpolate two rows linearly. The tokens of the shorter are repeated, which does not change attention."""
    tokens = math.lcm(first.tokens, second.tokens)
    first, second = (one.repeat_tokens(tokens // one.tokens) for one in (first, second))
    hidden = torch.lerp(first.hidden, second.hidden, t)
    pooled = None
    if first.pooled is not None and second.pooled is not None:
        pooled = torch.lerp(first.pooled, second.pooled, t)
    return replace(first, hidden=hidden, pooled=pooled, keys=())


def _only(row: Row) -> Conditioning:
    """The conditioning of a prompt. Raises InputError for prompts with AND or schedules."""
    if len(row.positive) > 1 or len(row.positive[0].spans) > 1:
        raise InputError("prompts of an animation cannot contain AND or schedules like [from:to:when]; remove them")
    return row.positive[0].spans[0][1]
