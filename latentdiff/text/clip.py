"""CLIP's text encoder (Radford et al. 2021, sec. 2.4): a causal transformer, pooled at the end token.

Attribute names are the keys of transformers' `CLIPTextModelWithProjection`; without the projection, those that
`CLIPTextModel` had before transformers 5.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentdiff.config.clip import CLIPTextConfig

OLD_EOS = 2  # in the configs of OpenAI's models, whose end token is in fact the highest id


@dataclass(frozen=True)
class CLIPTextOutput:
    """Output of the encoder for ids [B, S].

    last_hidden_state: [B, S, D], after the final LayerNorm. hidden_states: the input of the first layer and the output
    of each layer, before that norm. pooler_output: [B, D], the last state at the end token. text_embeds: [B, P], its
    projection, if the model has one.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    pooler_output: Tensor
    text_embeds: Tensor | None


class CLIPTextEmbeddings(nn.Module):
    """Sum of token and position embeddings, initialised with zeros.

    The random initialisation of `nn.Embedding` would import torch's compiler, which takes a second, when the model is
    built on the meta device.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        tokens, positions, width = config.vocab_size, config.max_position_embeddings, config.hidden_size
        self.token_embedding = nn.Embedding.from_pretrained(torch.zeros(tokens, width), freeze=False)
        self.position_embedding = nn.Embedding.from_pretrained(torch.zeros(positions, width), freeze=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[-1], device=input_ids.device)
        return self.token_embedding(input_ids) + self.position_embedding(positions)  # [B, S, D]


class CLIPAttention(nn.Module):
    """Causal multi-head self-attention. [B, S, D] -> [B, S, D]."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, heads, S, head_dim]
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, S, head_dim]


class CLIPMLP(nn.Module):
    """Linear, GELU or OpenAI's approximation x sigmoid(1.702 x) (Hendrycks & Gimpel 2016, sec. 2), linear."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


class CLIPEncoderLayer(nn.Module):
    """Attention and feed-forward, each with a preceding LayerNorm and a residual connection."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """The sequence of layers."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)


class CLIPTextTransformer(nn.Module):
    """Ids [B, S] to the hidden states of all layers, and the last one after the final LayerNorm."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, input_ids: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        states = self.encoder(self.embeddings(input_ids))
        return states, self.final_layer_norm(states[-1])


class CLIPTextModel(nn.Module):
    """The text encoder of Stable Diffusion 1 and 2; with a projection, the second text encoder of SDXL."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)
        width, projected = config.hidden_size, config.projection_dim
        self.text_projection = nn.Linear(width, projected, bias=False) if config.with_projection else None
        self.register_load_state_dict_pre_hook(_take_other_keys)

    def forward(self, input_ids: Tensor) -> CLIPTextOutput:
        states, last = self.text_model(input_ids)
        pooled = last[torch.arange(len(last), device=last.device), self._ends(input_ids)]
        embeds = None if self.text_projection is None else self.text_projection(pooled)
        return CLIPTextOutput(last, states, pooled, embeds)

    def _ends(self, input_ids: Tensor) -> Tensor:
        """Index of the first end token of each text: [B]. Padding may use the same token."""
        eos = self.config.eos_token_id
        return (input_ids if eos == OLD_EOS else (input_ids == eos).int()).argmax(-1)


def current_key(key: str) -> str | None:
    """Our name for a tensor in a file, or None if it is not needed.

    transformers 5 omits `text_model.` in models without a projection; files from 2022 contain the position ids.
    """
    if key.endswith("embeddings.position_ids"):
        return None
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


def _take_other_keys(_: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        value = state.pop(key)
        if (name := current_key(key.removeprefix(prefix))) is not None:
            state[prefix + name] = value
