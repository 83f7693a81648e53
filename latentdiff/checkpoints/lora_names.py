"""Map the layer names in LoRA files of various programs to the layers of a model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from latentdiff.checkpoints.components import Components
from latentdiff.checkpoints.key_names import KeyTable, unet_table_of
from latentdiff.checkpoints.model_source import text_encoder_names

Key = tuple[str, str]  # part (`unet`, `text_encoder`, …) and diffusers' name of a layer
TEXT_MODEL = "text_model."


@dataclass(frozen=True)
class LayerShape:
    """The shape of a layer's weight, and whether it has a bias."""

    weight: tuple[int, ...]
    bias: bool


def parts_of(components: Components) -> dict[str, nn.Module]:
    """The networks that LoRAs can change, by diffusers' names."""
    encoders = components.text.encoders
    names = text_encoder_names(components.denoiser.config, len(encoders))
    return {"unet": components.denoiser, **dict(zip(names, encoders, strict=True))}


def layer_shapes(components: Components) -> dict[Key, LayerShape]:
    """All layers with a weight. The layers of the model must be plain."""
    found = {}
    for part, model in parts_of(components).items():
        for name, layer in model.named_modules():
            if isinstance(weight := getattr(layer, "weight", None), nn.Parameter):
                found[part, name] = LayerShape(tuple(weight.shape), getattr(layer, "bias", None) is not None)
    return found


def aliases(layers: Iterable[Key], config: Any) -> dict[str, Key]:
    """The names of each layer in LoRA files: with dots (diffusers, peft, ComfyUI) or underscores (kohya, LyCORIS)."""
    found: dict[str, Key] = {}
    layers = list(layers)
    encoders = sorted({part for part, _ in layers} - {"unet"})
    for part, name in layers:
        names = _unet_names(name, config) if part == "unet" else _text_names(name, part, encoders)
        found |= dict.fromkeys(names, (part, name))
    return found


def _unet_names(name: str, config: Any) -> Iterator[str]:
    table = unet_table_of(config)
    original = None if table is None else original_name(name, table)
    for prefix in ("unet.", "base_model.model.", "base_model.model.unet.", ""):
        yield prefix + name
    for spelling in (name, original):
        if spelling is not None:
            yield f"lora_unet_{spelling.replace('.', '_')}"
            yield f"lycoris_{spelling.replace('.', '_')}"
    if original is not None:
        yield f"diffusion_model.{original}"
        yield f"model.diffusion_model.{original}"


def original_name(name: str, table: KeyTable) -> str | None:
    """The name of a layer in Stable Diffusion's original layout, which kohya uses for SDXL."""
    weight = table.to_original(f"{name}.weight")
    return None if weight is None else weight.removesuffix(".weight")


def _text_names(name: str, part: str, encoders: list[str]) -> Iterator[str]:
    short = name.removeprefix(TEXT_MODEL)
    for spelling in {name, short}:  # transformers 5 omits `text_model.`
        yield f"{part}.{spelling}"
        if len(encoders) == 1:
            yield f"base_model.model.{spelling}"
            yield f"base_model.model.{part}.{spelling}"
    flat = name.replace(".", "_")
    number = 2 if part == "text_encoder_2" else 1
    yield f"lora_te{number}_{flat}"
    if len(encoders) == 1:
        yield f"lora_te_{flat}"


def normalise(name: str) -> str:
    """Convert names of attention processors, which diffusers wrote in 2023, to the names of their layers."""
    if ".processor." in name:
        name = name.replace(".processor.", ".")
    head, dot, last = name.rpartition(".")
    if last.endswith("_lora"):
        last = last.removesuffix("_lora")
        if head.startswith("text_encoder"):
            last = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}.get(last, last)
        return f"{head}{dot}{'to_out.0' if last == 'to_out' else last}"
    return name
