"""Keys of the networks' config files: used, known to have no effect, or named."""

import warnings

import pytest
import transformers

from latentdiff.config.clip import CLIPTextConfig
from latentdiff.config.diffusers_json import ModelConfig
from latentdiff.config.generation import GenerationConfig
from latentdiff.config.model import IdentityVAEConfig, UNetConfig, VAEConfig

CLASSES: list[type[ModelConfig]] = [UNetConfig, VAEConfig, IdentityVAEConfig, CLIPTextConfig, GenerationConfig]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_key_that_no_class_knows_is_named_in_a_warning(kind: type[ModelConfig]) -> None:
    with pytest.warns(
        UserWarning, match=r"a/config.json: unknown keys have no effect: 'ayers, rope'; correct or remove"
    ):
        kind.read({"rope": 1, "ayers": 2, "_diffusers_version": "0.30.0"}, "a/config.json")


def test_every_key_that_transformers_writes_is_known() -> None:
    """Those of diffusers' classes are in test_schedule."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CLIPTextConfig.read(
            transformers.CLIPTextConfig().to_dict() | {"architectures": ["CLIPTextModel"]}, "config.json"
        )


def test_the_text_encoder_of_stable_diffusion_is_read_without_a_warning() -> None:
    """The config of SD 1.5, as transformers 4 wrote it."""
    raw = {
        "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
        "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CLIPTextConfig.read(raw, "config.json").intermediate_size == 3072
