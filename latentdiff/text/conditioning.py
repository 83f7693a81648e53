"""From prompts to what the U-Net attends to: tokens, text encoders, `Conditioning`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentdiff.models.conditioning import Conditioning
from latentdiff.text.clip import CLIPTextModel
from latentdiff.text.tokenizer import CLIPTokenizer


class TextConditioner(nn.Module):
    """One CLIP text encoder (SD 1 and 2, SDXL refiner), or two whose states are joined along the width (SDXL).

    SD reads the last layer after its norm. SDXL and its refiner read the layer before the last of each encoder, and the
    projected pooled vector of the last, which tells them apart (Podell et al. 2023, sec. 2.1).
    """

    def __init__(self, tokenizers: list[CLIPTokenizer], encoders: Sequence[CLIPTextModel]) -> None:
        super().__init__()
        self.tokenizers = tokenizers
        self.encoders = nn.ModuleList(encoders)

    def tokenize(self, prompts: list[str]) -> list[Tensor]:
        """Token ids [B, S], padded and cut to the model's length, for each encoder."""
        return [tokenizer(prompts) for tokenizer in self.tokenizers]

    def lost_words(self, prompt: str) -> str:
        """The end of the prompt that does not fit the token limit, or an empty string."""
        tokenizer = self.tokenizers[0]
        return tokenizer.decode(tokenizer.encode(prompt)[tokenizer.model_max_length - 2 :])

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """Encode prompts on the device the encoders are on."""
        return self.embed(prompts)

    def embed(self, prompts: list[str]) -> Conditioning:
        """The same with gradients, for what is trained of the encoders."""
        device = next(self.parameters()).device
        ids = [batch.to(device) for batch in self.tokenize(prompts)]
        outputs = [encoder(i) for encoder, i in zip(self.encoders, ids, strict=True)]
        if outputs[-1].text_embeds is None:
            return Conditioning(outputs[0].last_hidden_state)
        hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
        return Conditioning(hidden, outputs[-1].text_embeds)
