"""How the tests' small random models are made."""

from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from latentdiff.checkpoint import Components
from latentdiff.config.model import ScheduleConfig, UNetConfig, VAEConfig
from latentdiff.models.text import TextConditioner
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL
from latentdiff.schedule import Schedule
from latentdiff.training.tokenizer import train_tokenizer

WORDS = ["a red apple", "a cat face", "a rocket, fluent 3d style", "猫", "wrong colours"]


def small_unet_config(**changes: Any) -> UNetConfig:
    values: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "num_attention_heads": (2, 4),
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    }
    return UNetConfig.model_validate(values | changes)


def small_vae_config(**changes: Any) -> VAEConfig:
    values: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return VAEConfig.model_validate(values | changes)


def small_tokenizer() -> CLIPTokenizer:
    return train_tokenizer(WORDS, vocab_size=560, max_length=16)


def small_text_encoder(tokenizer: CLIPTokenizer, projection: bool = False, **changes: Any) -> torch.nn.Module:
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": 32,
    }
    config = CLIPTextConfig(**(values | changes))
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def small_components(xl: bool = False) -> Components:
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    schedule = Schedule(ScheduleConfig(timestep_spacing="leading"))
    if not xl:
        text = TextConditioner([tokenizer], [small_text_encoder(tokenizer)])
        return Components(UNet2DConditionModel(small_unet_config()), AutoencoderKL(small_vae_config()), text, schedule)
    encoders = [small_text_encoder(tokenizer), small_text_encoder(tokenizer, projection=True)]
    config = small_unet_config(
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
    )
    text = TextConditioner([tokenizer, tokenizer], encoders)
    return Components(UNet2DConditionModel(config), AutoencoderKL(small_vae_config()), text, schedule, True)
