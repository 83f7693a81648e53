"""Which layer of a model a name in a LoRA file means, for every program that writes such files."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from latentdiff.checkpoints.components import Components
from latentdiff.checkpoints.key_names import unet_table_of
from latentdiff.checkpoints.source import text_encoder_names

Layers = dict[tuple[str, str], nn.Module]  # by part (`unet`, `text_encoder`, …) and diffusers' name
TEXT_MODEL = "text_model."


def parts_of(components: Components) -> dict[str, nn.Module]:
    """The networks that LoRAs change, by diffusers' names."""
    encoders = components.text.encoders
    names = text_encoder_names(components.denoiser.config, len(encoders))
    return {"unet": components.denoiser, **dict(zip(names, encoders, strict=True))}


def layers_of(components: Components) -> Layers:
    """Every layer with a weight."""
    return {
        (part, name): layer
        for part, model in parts_of(components).items()
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, "weight", None), nn.Parameter)
    }


def aliases(components: Components) -> dict[str, tuple[str, str]]:
    """What LoRA files call each layer: with dots (diffusers, peft, ComfyUI) or underscores (kohya, LyCORIS)."""
    found: dict[str, tuple[str, str]] = {}
    config: Any = components.denoiser.config
    encoders = [part for part in parts_of(components) if part != "unet"]
    for part, name in layers_of(components):
        names = _unet_names(name, config) if part == "unet" else _text_names(name, part, encoders)
        found |= dict.fromkeys(names, (part, name))
    return found


def _unet_names(name: str, config: Any) -> Iterator[str]:
    original = _original(name, config)
    for prefix in ("unet.", "base_model.model.", "base_model.model.unet.", ""):
        yield prefix + name
    for spelling in (name, original):
        if spelling is not None:
            yield f"lora_unet_{spelling.replace('.', '_')}"
            yield f"lycoris_{spelling.replace('.', '_')}"
    if original is not None:
        yield f"diffusion_model.{original}"
        yield f"model.diffusion_model.{original}"


def _original(name: str, config: Any) -> str | None:
    """The name in Stable Diffusion's own layout, which kohya uses for SDXL."""
    table = unet_table_of(config)
    weight = table.to_original(f"{name}.weight") if table is not None else None
    return None if weight is None else weight.removesuffix(".weight")


def _text_names(name: str, part: str, encoders: list[str]) -> Iterator[str]:
    short = name.removeprefix(TEXT_MODEL)
    for spelling in {name, short}:  # transformers 5 leaves `text_model.` out
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
    """Names of the attention processors that diffusers wrote in 2023, as those of the layers they belong to."""
    if ".processor." in name:
        name = name.replace(".processor.", ".")
    head, dot, last = name.rpartition(".")
    if last.endswith("_lora"):
        last = last.removesuffix("_lora")
        if head.startswith("text_encoder"):
            last = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}.get(last, last)
        return f"{head}{dot}{'to_out.0' if last == 'to_out' else last}"
    return name
