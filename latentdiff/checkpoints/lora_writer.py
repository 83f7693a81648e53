"""Write trained LoRA and DoRA pairs as files: one in diffusers' layout, one in kohya's."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentdiff.checkpoints.components import Components
from latentdiff.checkpoints.families import family_of_config
from latentdiff.checkpoints.key_names import unet_table_of
from latentdiff.checkpoints.lora_names import original_name, parts_of
from latentdiff.checkpoints.lora_reader import FILE, KOHYA
from latentdiff.config.model import UNetConfig

KOHYA_KINDS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}
# Names of the base models in kohya's metadata and in the modelspec metadata.
BASE_VERSIONS = {"Stable Diffusion 1": "sd_v1", "Stable Diffusion 2": "sd_v2", "Stable Diffusion XL": "sdxl_base_v1-0"}
ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1",
    "sd_v2": "stable-diffusion-v2",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
}


def save_lora(parts: Components, folder: Path, trigger: str = "") -> None:
    """Write the pairs that `training.lora` added in diffusers' layout (alpha equals the rank) and in kohya's.

    trigger: words that precede the captions, stored in the metadata of kohya's file.
    """
    state = _trained_pairs(parts)
    folder.mkdir(parents=True, exist_ok=True)
    diffusers_state = {f"{part}.{key}": value for (part, key), value in state.items()}
    save_file(diffusers_state, folder / FILE, metadata={"format": "pt"})
    metadata = {"format": "pt", **_kohya_metadata(parts, state, trigger)}
    save_file(_kohya_state(parts, state), folder / KOHYA, metadata=metadata)


def _trained_pairs(parts: Components) -> dict[tuple[str, str], Tensor]:
    from peft import get_peft_model_state_dict

    found: dict[tuple[str, str], Tensor] = {}
    for part, model in parts_of(parts).items():
        if hasattr(model, "peft_config"):
            found |= {(part, key): value.contiguous() for key, value in get_peft_model_state_dict(model).items()}
    return found


def _kohya_state(parts: Components, state: dict[tuple[str, str], Tensor]) -> dict[str, Tensor]:
    """Tensors with kohya's names: SDXL's U-Net in the original layout, two text encoders numbered, alpha per pair."""
    out: dict[str, Tensor] = {}
    two = len(parts.text.encoders) == 2
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if two else "lora_te", "text_encoder_2": "lora_te2"}
    for (part, key), value in state.items():
        layer, _, kind = key.partition(".lora_")
        name = _original(parts, layer) if part == "unet" and two else layer
        flat = f"{prefixes[part]}_{name.replace('.', '_')}"
        if kind == "magnitude_vector":  # programs divide it by norms that keep the weight's dimensions
            value = value.reshape(-1, *[1] * (state[part, f"{layer}.lora_A.weight"].dim() - 1))
        out[f"{flat}.{KOHYA_KINDS[f'lora_{kind}']}"] = value
        if kind == "A.weight":
            out[f"{flat}.alpha"] = torch.tensor(float(len(value)))
    return out


def _original(parts: Components, layer: str) -> str:
    table = unet_table_of(parts.denoiser.config)
    return layer if table is None else original_name(layer, table) or layer


def _kohya_metadata(parts: Components, state: dict[tuple[str, str], Tensor], trigger: str) -> dict[str, str]:
    config = parts.denoiser.config
    ranks = [len(value) for (_, key), value in state.items() if key.endswith(".lora_A.weight")]
    found: dict[str, Any] = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks, default=0)),
        "ss_network_alpha": str(max(ranks, default=0)),
        "modelspec.sai_model_spec": "1.0.0",
    }
    version = BASE_VERSIONS.get(family_of_config(config).name) if isinstance(config, UNetConfig) else None
    if version is not None:
        found |= {"ss_base_model_version": version, "modelspec.architecture": f"{ARCHITECTURES[version]}/lora"}
    if trigger:
        found |= {"modelspec.trigger_phrase": trigger, "ss_tag_frequency": json.dumps({"train": {trigger: 1}})}
    return found
