"""Builders of small random models for tests."""

from pathlib import Path
from typing import Any

import torch
import transformers

from latentdiff.checkpoints.components import Components, write_pipeline
from latentdiff.checkpoints.folder import WEIGHTS, write_text_encoder
from latentdiff.checkpoints.tensor_locations import find_tensors, read_tensors
from latentdiff.config.clip import CLIPTextConfig
from latentdiff.config.model import UNetConfig, VAEConfig
from latentdiff.config.schedule import ScheduleConfig
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL
from latentdiff.sampling.schedule import Schedule
from latentdiff.text.clip import CLIPTextModel
from latentdiff.text.text_conditioner import TextConditioner
from latentdiff.text.tokenizer import CLIPTokenizer
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


def small_text_encoder(tokenizer: CLIPTokenizer, projection: bool = False, **changes: Any) -> CLIPTextModel:
    values: dict[str, Any] = {
        "architectures": ("CLIPTextModelWithProjection" if projection else "CLIPTextModel",),
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
    model = CLIPTextModel(CLIPTextConfig.model_validate(values | changes)).eval()
    for table in (model.text_model.embeddings.token_embedding, model.text_model.embeddings.position_embedding):
        torch.nn.init.normal_(table.weight)
    return model


def as_transformers(part: CLIPTextModel | CLIPTokenizer, folder: Path) -> Any:
    """Our encoder or tokenizer, saved and opened by transformers."""
    if isinstance(part, CLIPTokenizer):
        part.save(folder)
        return transformers.CLIPTokenizer.from_pretrained(folder)
    write_text_encoder(part, folder)
    return getattr(transformers, part.config.architectures[0]).from_pretrained(folder)


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


def write_small_refiner(folder: Path, **vae: Any) -> Path:
    """SDXL's refiner: one text encoder with pooled text, sizes and an aesthetic score. vae: changes of its config."""
    torch.manual_seed(1)
    tokenizer = small_tokenizer()
    config = small_unet_config(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 5 * 8,
        use_linear_projection=True,
    )
    text = TextConditioner([tokenizer], [small_text_encoder(tokenizer, projection=True)])
    schedule = Schedule(ScheduleConfig(timestep_spacing="leading"))
    networks = UNet2DConditionModel(config), AutoencoderKL(small_vae_config(**vae))
    write_pipeline(Components(*networks, text, schedule), folder)
    return folder


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a component under the names and in the dtypes of its files."""
    locations = find_tensors(folder, WEIGHTS, str)
    return dict(zip(locations, read_tensors(locations.values()), strict=True))
