"""`TextConditioner`: the tokenizers and text encoders of a model, which encode one prompt as `Conditioning`."""

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

SMALLEST_MEAN = 1e-3  # in standard deviations: emphasis restores means of a chunk's states that are at least this large


@dataclass(frozen=True)
class PromptOptions:
    """Options for reading and encoding prompts.

    syntax: "a1111", or "plain" for literal text, truncated to the encoder's length. clip_skip: number of layers to skip
    before the layer that the model normally reads, as in diffusers.
    """

    syntax: PromptSyntax = "a1111"
    clip_skip: int = 0


class TextConditioner(nn.Module):
    """One CLIP text encoder (SD 1 and 2, SDXL refiner), or two with states concatenated along the width (SDXL).

    SD reads the last layer after its norm. SDXL and its refiner read the penultimate layer of each encoder, and the
    projected pooled vector of the last encoder (Podell et al. 2023, sec. 2.1).
    """

    def __init__(self, tokenizers: list[CLIPTokenizer], encoders: Sequence[CLIPTextModel]) -> None:
        super().__init__()
        self.tokenizers = tokenizers
        self.encoders = nn.ModuleList(encoders)

    @property
    def has_pooled(self) -> bool:
        """Whether the last encoder has a pooled output, as in SDXL and its refiner."""
        encoder: Any = self.encoders[-1]
        return encoder.text_projection is not None

    @property
    def max_clip_skip(self) -> int:
        """The largest `clip_skip`, which leaves one layer of the smallest encoder."""
        encoders: Any = self.encoders
        layers: int = min(encoder.config.num_hidden_layers for encoder in encoders)
        return max(0, layers - (2 if self.has_pooled else 1))

    def tokenize(self, prompts: list[str]) -> list[Tensor]:
        """Token ids [B, S] for each encoder, padded and truncated to the model's length."""
        return [tokenizer(prompts) for tokenizer in self.tokenizers]

    def lost_words(self, prompt: str) -> str:
        """The end of a plain prompt that exceeds the token limit, or an empty string."""
        tokenizer = self.tokenizers[0]
        return tokenizer.decode(tokenizer.encode(prompt)[tokenizer.model_max_length - 2 :])

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """Encode plain prompts, on the device of the encoders."""
        return self.embed(prompts)

    def embed(self, prompts: list[str]) -> Conditioning:
        """As `encode`, with gradients for training the encoders."""
        device = next(self.parameters()).device
        ids = [batch.to(device) for batch in self.tokenize(prompts)]
        outputs = [encoder(i) for encoder, i in zip(self.encoders, ids, strict=True)]
        return self._joined([self._states(k, out) for k, out in enumerate(outputs)], outputs[-1].text_embeds)

    @torch.no_grad()
    def encode_prompt(self, texts: Sequence[str], options: PromptOptions) -> Conditioning:
        """One row from one prompt per encoder: chunks are encoded one by one and concatenated along the tokens.

        The shorter prompt is padded with empty chunks. `pooled` is that of the first chunk.
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
    """Multiply states [N, S, D] by the weights [N, S] of their tokens, then scale each chunk to its original mean.

    A1111's web UI calls this emphasis "Original". A mean near 0, as in models whose last LayerNorm was hardly trained,
    is not restored, because the ratio of the means would be arbitrary.
    """
    if bool((weights == 1).all()):
        return states
    exact = states.float()
    weighted = exact * weights.to(exact)[..., None]
    mean, new_mean = (t.mean(dim=(1, 2), keepdim=True) for t in (exact, weighted))
    significant = mean.abs() > SMALLEST_MEAN * exact.std(dim=(1, 2), keepdim=True)
    return (weighted * torch.where(significant, mean / new_mean, 1.0)).to(states.dtype)
