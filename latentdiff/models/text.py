"""From prompts to what the U-Net attends to: CLIP's tokenizer and text encoder, both from transformers."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TextEmbedding:
    """`hidden` [B, S, D] for cross-attention; `pooled` [B, P] for SDXL, else None."""

    hidden: Tensor
    pooled: Tensor | None = None


class TextConditioner(nn.Module):
    """One CLIP text encoder (SD 1 and 2), or two whose states are joined along the width (SDXL).

    SD reads the last layer after its norm; SDXL reads the layer before the last of each, and the second encoder's
    projected pooled vector (Podell et al. 2023, sec. 2.1).
    """

    def __init__(self, tokenizers: list[Any], encoders: list[nn.Module]) -> None:
        super().__init__()
        self.tokenizers = tokenizers
        self.encoders = nn.ModuleList(encoders)
        self.longer_words: dict[str, str] = {}  # learnt words of several tokens, as they are written out

    def tokenize(self, prompts: list[str]) -> list[Tensor]:
        """Token ids [B, S], padded and cut to the model's length, for each encoder."""
        for word, tokens in self.longer_words.items():
            prompts = [prompt.replace(word, tokens) for prompt in prompts]
        return [
            tokenizer(
                prompts,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer in self.tokenizers
        ]

    def lost_words(self, prompt: str) -> str:
        """The end of the prompt that does not fit the token limit, or an empty string."""
        tokenizer = self.tokenizers[0]
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids[tokenizer.model_max_length - 2 :]
        return tokenizer.decode(ids).strip()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Encode prompts on the device the encoders are on."""
        return self.embed(prompts)

    def embed(self, prompts: list[str]) -> TextEmbedding:
        """The same with gradients, for what is trained of the encoders."""
        device = next(self.parameters()).device
        ids = [batch.to(device) for batch in self.tokenize(prompts)]
        if len(self.encoders) == 1:
            return TextEmbedding(self.encoders[0](ids[0]).last_hidden_state)
        outputs = [encoder(i, output_hidden_states=True) for encoder, i in zip(self.encoders, ids, strict=True)]
        hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
        return TextEmbedding(hidden, outputs[-1].text_embeds)
