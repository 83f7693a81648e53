"""Config of CLIP's text encoder, with the keys of transformers' `config.json`."""

from collections.abc import Collection
from typing import Any, Literal, Self

from pydantic import model_validator

from latentdiff.config.diffusers_json import Channels, Epsilon, Heads, Layers, ModelConfig, TokenId, Tokens

WITHOUT_EFFECT = (  # keys of transformers' CLIPTextConfig, and of its base class in versions since 2021
    "add_cross_attention", "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dropout", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_factor",
    "initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_scores", "prefix", "problem_type", "pruned_heads", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p",
    "use_bfloat16", "use_cache",
)  # fmt: skip


class CLIPTextConfig(ModelConfig):
    """Config of a CLIP text encoder, with transformers' keys and defaults.

    architectures: states whether the pooled state is projected. eos_token_id: the token at which the state is pooled;
    the other token ids have no effect.
    """

    architectures: tuple[Literal["CLIPTextModel", "CLIPTextModelWithProjection"]] = ("CLIPTextModel",)
    vocab_size: Tokens = 49408
    hidden_size: Channels = 512
    intermediate_size: Channels = 2048
    num_hidden_layers: Layers = 12
    num_attention_heads: Heads = 8
    max_position_embeddings: Channels = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    projection_dim: Channels = 512
    bos_token_id: TokenId = 49406
    eos_token_id: TokenId = 49407
    pad_token_id: TokenId = 1

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size} must be divisible by {self.num_attention_heads} heads")
        return self

    @property
    def with_projection(self) -> bool:
        return self.architectures == ("CLIPTextModelWithProjection",)

    def write(self) -> dict[str, Any]:
        """The dictionary in transformers' format."""
        return {"model_type": "clip_text_model", **self.model_dump(mode="json")}

    @classmethod
    def _without_effect(cls) -> Collection[str]:
        return WITHOUT_EFFECT

    @classmethod
    def _only(cls) -> dict[str, tuple[Any, ...]]:
        return {"model_type": ("clip_text_model",), "attention_dropout": (0.0,), "quantization_config": (None,)}
