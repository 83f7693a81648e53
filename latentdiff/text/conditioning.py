"""From prompts to what the U-Net attends to: tokens, text encoders, `Conditioning`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.models.conditioning import Conditioning
from latentdiff.text.chunks import Chunk, split_chunks
from latentdiff.text.clip import CLIPTextModel, CLIPTextOutput
from latentdiff.text.prompt_syntax import PromptSyntax, parse_emphasis
from latentdiff.text.tokenizer import CLIPTokenizer

SMALLEST_MEAN = 1e-3  # of a chunk's states, in standard deviations, that emphasis restores


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are read and encoded.

    syntax: "a1111", or "plain" for text as it is, cut at the encoder's length. clip_skip: layers left out before the
    end of each text encoder, counted from the layer that the model reads, as diffusers' `clip_skip`.
    """

    syntax: PromptSyntax = "a1111"
    clip_skip: int = 0


class TextConditioner(nn.Module):
    """One CLIP text encoder (SD 1 and 2, SDXL refiner), or two whose states are joined along the width (SDXL).

    SD reads the last layer after its norm. SDXL and its refiner read the layer before the last of each encoder, and the
    projected pooled vector of the last, which tells them apart (Podell et al. 2023, sec. 2.1).
    """

    def __init__(self, tokenizers: list[CLIPTokenizer], encoders: Sequence[CLIPTextModel]) -> None:
        super().__init__()
        self.tokenizers = tokenizers
        self.encoders = nn.ModuleList(encoders)

    @property
    def has_pooled(self) -> bool:
        """Whether the last encoder gives a pooled vector, as those of SDXL and its refiner."""
        encoder: Any = self.encoders[-1]
        return encoder.text_projection is not None

    @property
    def max_clip_skip(self) -> int:
        """The largest `clip_skip`, which leaves one layer of the encoder with the fewest."""
        encoders: Any = self.encoders
        layers: int = min(encoder.config.num_hidden_layers for encoder in encoders)
        return max(0, layers - (2 if self.has_pooled else 1))

    def tokenize(self, prompts: list[str]) -> list[Tensor]:
        """Token ids [B, S], padded and cut to the model's length, for each encoder."""
        return [tokenizer(prompts) for tokenizer in self.tokenizers]

    def lost_words(self, prompt: str) -> str:
        """The end of a plain prompt that does not fit the token limit, or an empty string."""
        tokenizer = self.tokenizers[0]
        return tokenizer.decode(tokenizer.encode(prompt)[tokenizer.model_max_length - 2 :])

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """Encode plain prompts on the device the encoders are on."""
        return self.embed(prompts)

    def embed(self, prompts: list[str]) -> Conditioning:
        """The same with gradients, for training the encoders."""
        device = next(self.parameters()).device
        ids = [batch.to(device) for batch in self.tokenize(prompts)]
        outputs = [encoder(i) for encoder, i in zip(self.encoders, ids, strict=True)]
        return self._joined([self._states(k, out) for k, out in enumerate(outputs)], outputs[-1].text_embeds)

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str], options: PromptOptions) -> Conditioning:
        """One row from one prompt for each encoder: its chunks encoded one by one and joined along the tokens.

        A shorter prompt is filled with empty chunks to the length of the other. `pooled` is that of the first chunk.
        """
        chunks = [self._chunks(k, text, options.syntax) for k, text in enumerate(texts)]
        count, states = max(map(len, chunks)), []
        pooled = None
        for k, (encoder, own) in enumerate(zip(self.encoders, chunks, strict=True)):
            padded = [chunk.padded(self.tokenizers[k]) for chunk in own + [Chunk()] * (count - len(own))]
            out = encoder(torch.tensor([ids for ids, _ in padded], device=next(self.parameters()).device))
            weights = torch.tensor([row for _, row in padded])
            states.append(emphasize(self._states(k, out, options.clip_skip), weights).flatten(0, 1)[None])
            pooled = None if out.text_embeds is None else out.text_embeds[:1]
        return self._joined(states, pooled)

    def _chunks(self, k: int, text: str, syntax: PromptSyntax) -> list[Chunk]:
        tokenizer = self.tokenizers[k]
        if syntax == "a1111":
            return split_chunks(parse_emphasis(text), tokenizer)
        ids = tokenizer.encode(text)[: tokenizer.model_max_length - 2]
        return [Chunk(ids, [1.0] * len(ids))]

    def _states(self, k: int, out: CLIPTextOutput, clip_skip: int = 0) -> Tensor:
        if self.has_pooled:
            return out.hidden_states[-2 - clip_skip]
        if not clip_skip:
            return out.last_hidden_state
        encoder: Any = self.encoders[k]
        states: Tensor = encoder.text_model.final_layer_norm(out.hidden_states[-1 - clip_skip])
        return states

    def _joined(self, states: list[Tensor], pooled: Tensor | None) -> Conditioning:
        hidden = states[0] if len(states) == 1 else torch.cat(states, dim=-1)
        return Conditioning(hidden, pooled if self.has_pooled else None)


def emphasize(states: Tensor, weights: Tensor) -> Tensor:
    """States [N, S, D] times the weights [N, S] of their tokens, scaled to the mean that each chunk had before.

    This is the emphasis that A1111's web UI calls "Original". A mean of nearly 0, as models with a last LayerNorm that
    was hardly trained have, is not restored: the quotient would be arbitrary, and could have either sign.
    """
    if bool((weights == 1).all()):
        return states
    exact = states.float()
    weighted = exact * weights.to(exact)[..., None]
    mean, new_mean = (t.mean(dim=(1, 2), keepdim=True) for t in (exact, weighted))
    significant = mean.abs() > SMALLEST_MEAN * exact.std(dim=(1, 2), keepdim=True)
    return (weighted * torch.where(significant, mean / new_mean, 1.0)).to(states.dtype)
