"""`Conditioning`, all inputs of a denoising network besides latents and noise level, and the protocol of networks."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.device_transfer import send
from latentdiff.errors import InputError

_NEW_KEYS = count()


@dataclass(frozen=True)
class Conditioning:
    """One row per image of a batch. The tensors must not be modified, since fast layers cache results of them.

    hidden: [B, S, D] token states for cross-attention. pooled: [B, P] pooled text, SDXL only. time_ids: [B, 6] original
    size, crop offset and target size in pixels, SDXL only (Podell et al. 2023, sec. 2.2); its refiner reads [B, 5],
    with an aesthetic score in place of the target size.
    channels: [B, E, h, w] that inpainting and editing models read in addition to the latents.
    keys: one per row; rows with equal keys have equal content, except channels. New ones are created if none are given.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    keys: tuple[Hashable, ...] = ()
    channels: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.keys:
            object.__setattr__(self, "keys", tuple(next(_NEW_KEYS) for _ in range(len(self.hidden))))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice) -> "Conditioning":
        """The selected rows, without a copy."""
        return Conditioning(**{f.name: _rows(getattr(self, f.name), rows) for f in fields(self)})

    def split(self) -> list["Conditioning"]:
        """The rows as separate values."""
        return [self[k : k + 1] for k in range(len(self))]

    def to(self, device: torch.device) -> "Conditioning":
        """Copy every tensor to a device; see `device_transfer.send`."""
        pooled, ids, channels = (None if t is None else send(t, device) for t in _tensors(self)[1:])
        return Conditioning(send(self.hidden, device), pooled, ids, self.keys, channels)

    def repeat(self, times: int) -> "Conditioning":
        """Repeat each row `times` times consecutively, as `num_images_per_prompt` requires."""
        return concatenate([row for row in self.split() for _ in range(times)])

    @property
    def tokens(self) -> int:
        """S, the number of tokens per row."""
        return self.hidden.shape[1]

    def repeat_tokens(self, times: int) -> "Conditioning":
        """Repeat all tokens `times` times, which does not change the result of attention."""
        if times == 1:
            return self
        keys = tuple((key, "tokens", times) for key in self.keys)
        return replace(self, hidden=self.hidden.repeat(1, times, 1), keys=keys)

    def zeros_like(self) -> "Conditioning":
        """Zeros in place of the text: SDXL's unconditional row if there is no negative prompt."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return Conditioning(torch.zeros_like(self.hidden), pooled, self.time_ids)

    def with_channels(self, channels: Tensor) -> "Conditioning":
        """Set the channels [E, h, w] of all rows."""
        return replace(self, channels=channels.expand(len(self), *channels.shape))

    def with_time_ids(self, *ids: float) -> "Conditioning":
        """Set the sizes of all rows; does nothing without pooled text, since the network then reads no sizes."""
        if self.pooled is None:
            return self
        rows = torch.tensor(ids, dtype=torch.float32, device=self.hidden.device).expand(len(self), -1)
        return replace(self, time_ids=rows, keys=tuple((key, ids) for key in self.keys))


@dataclass(frozen=True)
class PromptConditioning:
    """The conditioning of one image by one prompt, which may change while it is sampled.

    spans: pairs of a timestep and one row, which applies from that timestep down; from high to low, and the first from
    any. weight: of the prediction in guidance, for prompts that are joined with AND.
    """

    spans: tuple[tuple[float, Conditioning], ...]
    weight: float = 1.0

    @classmethod
    def constant(cls, conditioning: Conditioning) -> "PromptConditioning":
        """One row for all timesteps."""
        return cls(((float("inf"), conditioning),))

    def map(self, change: Callable[[Conditioning], Conditioning]) -> "PromptConditioning":
        """Apply a function to every row."""
        return replace(self, spans=tuple((start, change(row)) for start, row in self.spans))

    def at(self, timestep: float) -> Conditioning:
        """The row that applies at a timestep."""
        return next((row for start, row in reversed(self.spans) if timestep <= start), self.spans[0][1])


def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """Concatenate rows to a batch. Raises InputError if token counts differ, or only some have pooled text or sizes."""
    if len(parts) == 1:
        return parts[0]
    shapes = {tuple(None if t is None else t.shape[1:] for t in _tensors(part)) for part in parts}
    if len(shapes) > 1:
        if len({None if part.channels is None else part.channels.shape[1:] for part in parts}) > 1:
            raise InputError("rows with and without an input image cannot share a batch; step them separately")
        counts = sorted({part.hidden.shape[1] for part in parts})
        raise InputError(f"conditioning of {counts} tokens cannot share a batch; encode every prompt to one length")
    hidden, pooled, ids, channels = (_cat(group) for group in zip(*map(_tensors, parts), strict=True))
    assert hidden is not None
    return Conditioning(hidden, pooled, ids, tuple(key for part in parts for key in part.keys), channels)


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None


def _tensors(part: Conditioning) -> tuple[Tensor | None, ...]:
    return part.hidden, part.pooled, part.time_ids, part.channels


def _rows(value: Any, rows: slice) -> Any:
    return None if value is None else value[rows]


class DenoisingNetwork(nn.Module):
    """What the pipeline, training and checkpoints require of a network that predicts noise, velocity, x0 or flow.

    config: its numbers, with `write()` for diffusers' config.json. latent_channels: C of what it denoises.
    default_size: side in latents that it was trained for. side_multiple: sides in latents are multiples of it, so that
    maps can be halved evenly. gradient_checkpointing: keep only the blocks' inputs for the backward pass.
    """

    config: Any
    latent_channels: int
    default_size: int
    side_multiple: int
    gradient_checkpointing: bool

    def forward(self, sample: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """sample: [B, C, h, w]; timesteps: [B], or [1] for all rows. Returns [B, C, h, w]."""
        raise NotImplementedError
