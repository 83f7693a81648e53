"""Detect the model family of a single file from its keys and shapes, and derive the configs of its networks.

This is the only table in the package that infers configs. Shapes determine widths and depths; the family, which follows
from the structure of the U-Net, determines the number of heads, activations, the noise schedule and the VAE's scale.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from latentdiff.config.clip import CLIPTextConfig
from latentdiff.config.model import UNetConfig, VAEConfig
from latentdiff.config.schedule import ScheduleConfig
from latentdiff.errors import CheckpointError

HEAD_WIDTH = 64  # of SD 2, SDXL and every CLIP encoder
OPEN_CLIP_LAYERS = 24  # SD 2 uses the hidden state before the last of these layers
Shapes = Mapping[str, tuple[int, ...]]
FIRST_WIDTHS = (320, 384)  # of the published models
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
TASKS = {8: "instruction editing (InstructPix2Pix)", 9: "inpainting"}


@dataclass(frozen=True)
class Family:
    """Settings shared by all models of a family.

    heads: at every level; None for heads of width 64. prediction: None if files of the family differ.
    """

    name: str
    sample_size: int  # of v-prediction models where files of the family differ, else of all
    heads: int | None
    prediction: str | None
    vae_scale: float
    vae_float32: bool
    text: tuple[str, ...]


SD1 = Family("Stable Diffusion 1", 64, 8, "epsilon", 0.18215, False, ("clip",))
SD2 = Family("Stable Diffusion 2", 96, None, None, 0.18215, False, ("open_clip",))
XL = Family("Stable Diffusion XL", 128, None, "epsilon", 0.13025, True, ("clip", "open_clip"))
REFINER = Family("Stable Diffusion XL refiner", 128, None, "epsilon", 0.13025, True, ("open_clip",))


def family_of(unet: Shapes) -> Family:
    """The family of a U-Net, from diffusers' names of its weights."""
    if "add_embedding.linear_1.weight" in unet:
        return REFINER if count(unet, "down_blocks.") == 4 else XL
    projections = [shape for key, shape in unet.items() if key.endswith("proj_in.weight")]
    return SD2 if projections and len(projections[0]) == 2 else SD1


def family_of_config(unet: UNetConfig) -> Family:
    """The family of a U-Net config."""
    if unet.addition_embed_type is not None:
        return REFINER if len(unet.block_out_channels) == 4 else XL
    return SD2 if unet.use_linear_projection else SD1


def family_name(unet: UNetConfig) -> str:
    """The name of a config's family, with its task unless that is text-to-image."""
    name = family_of_config(unet).name
    if unet.block_out_channels[0] not in FIRST_WIDTHS:
        name = f"a model in the layout of {name}"
    if unet.in_channels == unet.out_channels:
        return name
    return f"{name}, {TASKS.get(unet.in_channels, f'{unet.in_channels} input channels')}"


def count(names: Iterable[str], prefix: str) -> int:
    """The number of numbered modules with a prefix."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return len({number for number in numbers if number.isdigit()})


def unet_config(shapes: Shapes, family: Family, where: str) -> UNetConfig:
    """The config of a U-Net, from its shapes. Raises CheckpointError naming what is missing."""
    levels = count(shapes, "down_blocks.")
    widths = [_first(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", where) for i in range(levels)]
    down = [_depths(shapes, f"down_blocks.{i}.") for i in range(levels)]
    up = [_depths(shapes, f"up_blocks.{i}.") for i in range(levels)]
    heads = [family.heads or max(width // HEAD_WIDTH, 1) for width in widths]
    raw: dict[str, Any] = {
        "sample_size": family.sample_size,
        "in_channels": _second(shapes, "conv_in.weight", where),
        "out_channels": _first(shapes, "conv_out.weight", where),
        "block_out_channels": widths,
        "layers_per_block": count(shapes, "down_blocks.0.resnets."),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in down],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in up],
        "mid_block_type": _mid_type(shapes),
        "num_attention_heads": heads,
        "use_linear_projection": family is not SD1,
        "cross_attention_dim": _context(shapes, where),
        **_transformer_layers(down, up, _depths(shapes, "mid_block.")),
    }
    if "add_embedding.linear_1.weight" in shapes:
        raw["addition_embed_type"] = "text_time"
        raw["projection_class_embeddings_input_dim"] = _second(shapes, "add_embedding.linear_1.weight", where)
    return UNetConfig.read(raw, where)


def vae_config(shapes: Shapes, family: Family, where: str) -> VAEConfig:
    """The config of a VAE, from its shapes. Raises CheckpointError naming what is missing."""
    levels = count(shapes, "encoder.down_blocks.")
    raw = {
        "block_out_channels": [
            _first(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", where) for i in range(levels)
        ],
        "layers_per_block": count(shapes, "encoder.down_blocks.0.resnets."),
        "latent_channels": _second(shapes, "decoder.conv_in.weight", where),
        "sample_size": 8 * family.sample_size,
        "scaling_factor": family.vae_scale,
        "force_upcast": family.vae_float32,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }
    return VAEConfig.read(raw, where)


def clip_config(shapes: Shapes, open_clip: bool, where: str) -> CLIPTextConfig:
    """The config of a text encoder, from its shapes; OpenCLIP's use exact GELU and may project the pooled state."""
    table = "text_model.embeddings.token_embedding.weight"
    width = _second(shapes, table, where)
    projects = "text_projection.weight" in shapes
    raw = {
        "architectures": ["CLIPTextModelWithProjection" if projects else "CLIPTextModel"],
        "vocab_size": _first(shapes, table, where),
        "hidden_size": width,
        "intermediate_size": _first(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", where),
        "num_hidden_layers": count(shapes, "text_model.encoder.layers."),
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "max_position_embeddings": _first(shapes, "text_model.embeddings.position_embedding.weight", where),
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "projection_dim": _first(shapes, "text_projection.weight", where) if projects else width,
    }
    return CLIPTextConfig.read(raw, where)


def schedule_config(
    family: Family, names: Iterable[str], metadata: Mapping[str, str], prediction: str | None, where: str
) -> tuple[ScheduleConfig, str]:
    """The noise schedule, and a note on how the prediction type was determined.

    Raises CheckpointError for SD 2 without a marker: base and v-prediction models have the same names and shapes.
    """
    names = set(names)
    chosen, reason = _prediction(family, names, metadata, prediction, where)
    zero_snr = "ztsnr" in names
    if zero_snr and chosen == "epsilon":
        raise CheckpointError(f"{where}: the key ztsnr requires v_prediction; pass --prediction-type v_prediction")
    raw = NOISE | {"prediction_type": chosen, "rescale_betas_zero_snr": zero_snr}
    return ScheduleConfig.read(raw | ({"timestep_spacing": "trailing"} if zero_snr else {}), where), reason


def _prediction(
    family: Family, names: set[str], metadata: Mapping[str, str], given: str | None, where: str
) -> tuple[str, str]:
    if given is not None:
        return given, "as given"
    if "edm_vpred.sigma_max" in names or "edm_mean" in names:
        raise CheckpointError(f"{where} is an EDM model, which is not supported; use another checkpoint")
    if "v_pred" in names:
        return "v_prediction", "by the key v_pred"
    said = metadata.get("modelspec.prediction_type", "")
    if said in ("v", "v_prediction", "epsilon"):
        return ("epsilon" if said == "epsilon" else "v_prediction"), "by the file's modelspec metadata"
    if family.prediction is None:
        raise CheckpointError(
            f"{where} is a {family.name} model, whose files do not state the prediction type; pass --prediction-type "
            "v_prediction (768-v models) or epsilon (512-base and inpainting models)"
        )
    return family.prediction, f"usual for {family.name}"


def _depths(shapes: Shapes, prefix: str) -> list[int]:
    """The number of transformer blocks in each attention module of a block."""
    attentions = count(shapes, f"{prefix}attentions.")
    return [count(shapes, f"{prefix}attentions.{i}.transformer_blocks.") for i in range(attentions)]


def _transformer_layers(down: list[list[int]], up: list[list[int]], mid: list[int]) -> dict[str, Any]:
    """One number per level if all attention modules of a level are equal, else lists for down and up blocks."""
    by_level = [{*depths, *back} for depths, back in zip(down, reversed(up), strict=True)]
    by_level[-1] |= set(mid)
    if all(len(depths) <= 1 for depths in by_level):
        used = set().union(*by_level)
        unused = used.pop() if len(used) == 1 else 1  # levels without attention
        return {"transformer_layers_per_block": [depths.pop() if depths else unused for depths in by_level]}
    listed: list[Any] = [depths or 1 for depths in down]
    if mid and listed[-1] == 1:
        listed[-1] = mid[0]
    return {"transformer_layers_per_block": listed, "reverse_transformer_layers_per_block": [d or 1 for d in up]}


def _mid_type(shapes: Shapes) -> str | None:
    if count(shapes, "mid_block.attentions."):
        return "UNetMidBlock2DCrossAttn"
    return "UNetMidBlock2D" if count(shapes, "mid_block.resnets.") else None


def _context(shapes: Shapes, where: str) -> int:
    found = [shape for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")]
    if not found or len(found[0]) != 2:
        raise CheckpointError(f"{where} has no cross-attention; give a text-to-image model")
    return found[0][1]


def _first(shapes: Shapes, key: str, where: str) -> int:
    return _shape(shapes, key, 1, where)[0]


def _second(shapes: Shapes, key: str, where: str) -> int:
    return _shape(shapes, key, 2, where)[1]


def _shape(shapes: Shapes, key: str, least: int, where: str) -> tuple[int, ...]:
    if key not in shapes or len(shapes[key]) < least:
        raise CheckpointError(f"{where} lacks the tensor {key}; download the file again")
    return shapes[key]
