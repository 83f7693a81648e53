"""Small random models of the families that single files come in; the layout determines their widths."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from latentdiff.checkpoints.clip_vocabulary import clip_tokenizer
from latentdiff.checkpoints.components import Components, open_model, write_pipeline
from latentdiff.checkpoints.convert import convert
from latentdiff.config.clip import CLIPTextConfig
from latentdiff.config.model import UNetConfig, VAEConfig
from latentdiff.config.schedule import ScheduleConfig
from latentdiff.models.unet import UNet2DConditionModel
from latentdiff.models.vae import AutoencoderKL
from latentdiff.sampling.schedule import Schedule
from latentdiff.text.clip import CLIPTextModel
from latentdiff.text.text_conditioner import TextConditioner

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
XL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (64, 64, 128),
    "down_block_types": (PLAIN, CROSS, CROSS),
    "num_attention_heads": (1, 1, 2),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 128,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "projection_class_embeddings_input_dim": 64 + 6 * 256,
}
REFINER: dict[str, Any] = XL | {
    "block_out_channels": (64, 64, 64, 64),
    "down_block_types": (PLAIN, CROSS, CROSS, PLAIN),
    "num_attention_heads": (1, 1, 1, 1),
    "transformer_layers_per_block": (2, 2, 2, 2),
    "cross_attention_dim": 64,
    "projection_class_embeddings_input_dim": 64 + 5 * 256,
}
SD1: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "num_attention_heads": (8,) * 4,
    "cross_attention_dim": 64,
}
SD2: dict[str, Any] = {
    "block_out_channels": (64,) * 4,
    "num_attention_heads": (1,) * 4,
    "cross_attention_dim": 64,
    "use_linear_projection": True,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": SD1,
    "sd1-inpainting": SD1 | {"in_channels": 9},
    "sd1-pix2pix": SD1 | {"in_channels": 8},
    "sd2": SD2,
    "sd2-v": SD2 | {"sample_size": 96},
    "xl": XL,
    "xl-v": XL,
    "xl-refiner": REFINER,
}
CLIP = {"hidden_act": "quick_gelu", "vocab_size": 49408}
OPEN_CLIP = CLIP | {"hidden_act": "gelu"}
ENCODERS = {
    "sd1": [CLIP],
    "sd2": [OPEN_CLIP],
    "xl": [CLIP, OPEN_CLIP | {"architectures": ("CLIPTextModelWithProjection",)}],
    "xl-refiner": [OPEN_CLIP | {"architectures": ("CLIPTextModelWithProjection",)}],
}


def small_family(name: str) -> Components:
    """A random model of a family of `UNETS`."""
    torch.manual_seed(0)
    kind = name if name == "xl-refiner" else name.split("-")[0]
    unet = UNetConfig.model_validate(UNETS[name] | {"up_block_types": _up(UNETS[name])})
    vae = VAEConfig(
        block_out_channels=(32,) * 4,
        sample_size=8 * unet.sample_size,
        scaling_factor=0.13025 if kind.startswith("xl") else 0.18215,
        force_upcast=kind.startswith("xl"),
    )
    encoders = [CLIPTextModel(CLIPTextConfig.model_validate(_TEXT | changes)).eval() for changes in ENCODERS[kind]]
    for encoder in encoders:
        embeddings = encoder.text_model.embeddings
        torch.nn.init.normal_(embeddings.token_embedding.weight)
        torch.nn.init.normal_(embeddings.position_embedding.weight)
    tokenizers = [_tokenizer("!" if changes["hidden_act"] == "gelu" else "<|endoftext|>") for changes in ENCODERS[kind]]
    zero_snr = name == "xl-v"
    schedule = ScheduleConfig(
        prediction_type="v_prediction" if name.endswith("-v") else "epsilon",
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    )
    text = TextConditioner(tokenizers, encoders)
    models = (UNet2DConditionModel(unet).eval(), AutoencoderKL(vae).eval())
    return Components(*models, text, Schedule(schedule), zero_empty_prompt=kind == "xl")


def family_folder(name: str, folder: Path) -> Path:
    """The model in diffusers' layout."""
    write_pipeline(small_family(name), folder / name)
    return folder / name


def family_file(name: str, folder: Path) -> Path:
    """The model in one file, written by `convert`."""
    convert(open_model(family_folder(name, folder)), folder / f"{name}.safetensors", "single-file")
    return folder / f"{name}.safetensors"


_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 77,
    "projection_dim": 64,
}


@cache
def _tokenizer(pad: str) -> Any:
    return clip_tokenizer(77, pad)


def _up(unet: dict[str, Any]) -> list[str]:
    down = unet.get("down_block_types", (CROSS, CROSS, CROSS, PLAIN))
    return ["CrossAttnUpBlock2D" if kind == CROSS else "UpBlock2D" for kind in down[::-1]]
