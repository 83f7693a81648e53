"""LoRA (Hu et al. 2022) and DoRA (Liu et al. 2024): put into a model to be trained, saved, and merged for use."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from latentdiff.checkpoints.components import Components
from latentdiff.errors import CheckpointError
from latentdiff.files import atomic_path

FILE = "pytorch_lora_weights.safetensors"
KOHYA = "kohya.safetensors"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_PARTS = ("text_encoder", "text_encoder_2")
DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
KOHYAS_MAGNITUDE = "dora_scale"


def add_lora(parts: Components, rank: int, dora: bool = False, text_encoder: bool = False) -> None:
    """Freeze the U-Net and put trainable low-rank pairs beside its attention and feed-forward layers, in place.

    The same for the attention of the text encoders, if asked.
    """
    from peft import LoraConfig, inject_adapter_in_model

    def inject(model: nn.Module, targets: tuple[str, ...]) -> None:
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights="gaussian", use_dora=dora
        )
        inject_adapter_in_model(config, model)

    inject(parts.denoiser, TARGETS)
    for encoder in parts.text.encoders if text_encoder else ():
        inject(encoder, TEXT_TARGETS)


def save_lora(parts: Components, folder: Path) -> None:
    """Write the pairs that `add_lora` put in, in diffusers' layout (alpha equals the rank) and in kohya's."""
    from peft import get_peft_model_state_dict

    state = {f"unet.{key}": value for key, value in get_peft_model_state_dict(parts.denoiser).items()}
    for part, encoder in zip(TEXT_PARTS, parts.text.encoders, strict=False):
        if hasattr(encoder, "peft_config"):
            state |= {f"{part}.{key}": value for key, value in get_peft_model_state_dict(encoder).items()}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / FILE) as path:
        save_file({key: value.contiguous() for key, value in state.items()}, path, metadata={"format": "pt"})
    save_kohya(folder, folder / KOHYA)


def save_kohya(source: Path, target: Path) -> None:
    """Write a LoRA of ours again as kohya's trainers and the web interfaces name it."""
    state, _ = _read(find_lora(source))
    two = any(key.startswith("text_encoder_2.") for key in state)
    parts = {"unet": "lora_unet", "text_encoder": "lora_te1" if two else "lora_te", "text_encoder_2": "lora_te2"}
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name, _, kind = key.partition(".lora_")
        part, _, layer = name.partition(".")
        flat = f"{parts[part]}_{layer.replace('.', '_')}"
        kinds = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight", "magnitude_vector": KOHYAS_MAGNITUDE}
        if kind == "magnitude_vector":  # those that read it divide it by norms that keep the weight's dimensions
            value = value.reshape(-1, *[1] * (state[name + DOWN].dim() - 1))
        out[f"{flat}.{kinds[kind]}"] = value
        if kind == "A.weight":
            out[f"{flat}.alpha"] = torch.tensor(float(len(value)))
    with atomic_path(target) as path:
        save_file(out, path, metadata={"format": "pt"})


def merge_lora(parts: Components, path: Path, scale: float = 1.0) -> int:
    """Add a LoRA's change, times `scale`, to the weights of U-Net and text encoders, in place; returns layers changed.

    path: a folder or file in diffusers' or kohya's layout. Raises CheckpointError when it is none or matches nothing;
    warns when only a part matches.
    """
    file = find_lora(path)
    state, alphas = _read(file)
    if not any(key.endswith(DOWN) for key in state):
        state, alphas = _from_kohya(file, state, parts)
    layers = _layers(parts)
    names = [key.removesuffix(DOWN) for key in state if key.endswith(DOWN)]
    matched = [name for name in names if name in layers and _fits(layers[name], state, name)]
    if not matched:
        raise CheckpointError(f"{file} matches none of this model's layers; it was made for another kind of model")
    if len(matched) < len(names):
        missing = sorted(set(names) - set(matched))
        warnings.warn(f"{file}: {len(missing)} of {len(names)} layers match nothing, {missing[0]} first", stacklevel=2)
    for name in matched:
        _merge(layers[name], state, name, scale * alphas.get(name, 1.0))
    return len(matched)


def find_lora(path: Path) -> Path:
    """The LoRA file at `path`, itself or in a folder. Raises CheckpointError."""
    if path.is_file():
        return path
    for file in (path / FILE, path / "model" / FILE, *sorted(path.glob("*.safetensors"))):
        if file.is_file():
            return file
    raise CheckpointError(f"{path} holds no LoRA; give a .safetensors file or the folder that finetune wrote")


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors, and alpha over rank for the layers whose metadata says that they differ."""
    try:
        with safe_open(file, "pt") as opened:
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            metadata = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{file} is no readable safetensors file ({error}); download or train it again"
        ) from error
    ratio: dict[str, float] = {}
    for part in ("unet", *TEXT_PARTS):
        rank, alpha = (metadata.get(f"{part}.{name}") for name in ("r", "lora_alpha"))
        if rank and alpha:
            ratio |= {key.removesuffix(DOWN): alpha / rank for key in state if key.startswith(f"{part}.")}
    return state, ratio


def _from_kohya(file: Path, found: dict[str, Tensor], parts: Components) -> tuple[dict[str, Tensor], dict[str, float]]:
    """diffusers knows the many names that trainers give; slow to import, so only for files that need it.

    It leaves out DoRA's magnitudes: each follows the tensor that it stands beside.
    """
    try:
        from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
    except ImportError as error:
        raise CheckpointError(f"{file} is not in diffusers' layout; pip install diffusers to convert it") from error

    loader: Any = StableDiffusionLoraLoaderMixin
    if len(parts.text.encoders) == 2:
        loader = StableDiffusionXLLoraLoaderMixin
    pairs = {key: value for key, value in found.items() if not key.endswith(KOHYAS_MAGNITUDE)}
    try:
        state, alphas = loader.lora_state_dict(dict(pairs), unet_config=_UNetBlocks(parts))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} is in no LoRA layout that is known ({reason}); convert it first") from error
    renamed = {_peft_name(key): value for key, value in state.items()}
    renamed |= _magnitudes(file, found, {id(value): key.removesuffix(DOWN) for key, value in renamed.items()})
    ratio: dict[str, float] = {}
    for key, alpha in (alphas or {}).items():
        name = _peft_name(key.removesuffix(".alpha")).removesuffix(DOWN)
        if (down := renamed.get(name + DOWN)) is not None:
            ratio[name] = float(alpha) / len(down)
    return renamed, ratio


def _magnitudes(file: Path, found: dict[str, Tensor], names: dict[int, str]) -> dict[str, Tensor]:
    """DoRA's magnitudes, [out, 1, ...] in kohya's layout; `names`: of the layer that a tensor in the file is for."""
    magnitudes = {}
    for key, value in found.items():
        if key.endswith(KOHYAS_MAGNITUDE):
            name = names.get(id(found.get(key.removesuffix(KOHYAS_MAGNITUDE) + "lora_down.weight")))
            if name is None or value.numel() != len(value):
                raise CheckpointError(f"{file}: {key} is of no layer, or not of its outputs; convert the file first")
            magnitudes[name + MAGNITUDE] = value
    return magnitudes


class _UNetBlocks:
    """What diffusers' converter asks of a U-Net's config."""

    def __init__(self, parts: Components) -> None:
        self.layers_per_block = parts.denoiser.config.layers_per_block


def _peft_name(key: str) -> str:
    """`attn1.processor.to_q_lora.down.weight` and its like -> `attn1.to_q.lora_A.weight`."""
    if key.startswith("text_encoder"):  # whose layers diffusers renames as if they were a U-Net's
        key = re.sub(r"\.to_([qkv]|out)_lora\.", r".\1_proj.lora.", key)
    key = key.replace(".processor.", ".").replace(".to_out_lora.", ".to_out.0_lora.")
    key = key.replace(".lora_linear_layer.", ".lora.").replace("_lora.", ".lora.")
    return key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def _layers(parts: Components) -> dict[str, nn.Module]:
    """Layers with a weight by the name a LoRA file gives them."""
    found = {f"unet.{name}": layer for name, layer in parts.denoiser.named_modules() if hasattr(layer, "weight")}
    for part, encoder in zip(TEXT_PARTS, parts.text.encoders, strict=False):
        found |= {f"{part}.{name}": layer for name, layer in encoder.named_modules() if hasattr(layer, "weight")}
    return found


def _fits(layer: nn.Module, state: dict[str, Tensor], name: str) -> bool:
    up, down = state.get(name + UP), state[name + DOWN]
    weight: Any = layer.weight
    return up is not None and (len(up), down[0].numel()) == (len(weight), weight[0].numel())


@torch.no_grad()
def _merge(layer: nn.Module, state: dict[str, Tensor], name: str, scale: float) -> None:
    """W + s B A; with a magnitude m, m (W + s B A) / ||W + s B A|| by output (Liu et al. 2024, eq. 5)."""
    weight: Any = layer.weight
    down, up = (state[name + suffix].float().to(weight.device) for suffix in (DOWN, UP))
    changed = weight.float() + scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    if (magnitude := state.get(name + MAGNITUDE)) is not None:
        norm = changed.flatten(1).norm(dim=1)
        changed = changed * (magnitude.float().flatten().to(weight.device) / norm).view(-1, *[1] * (changed.ndim - 1))
    weight.copy_(changed)
