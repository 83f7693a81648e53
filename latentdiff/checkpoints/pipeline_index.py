"""`model_index.json`: the components of a pipeline folder in diffusers' layout, read and written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentdiff.config.model import UNetConfig
from latentdiff.errors import CheckpointError, shorten
from latentdiff.files import read_json

INDEX = "model_index.json"
ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
REQUIRED = ("unet", "vae", "scheduler")
# The pairs of library and class that each component may name; `ScheduleConfig` checks the class of the scheduler.
SUPPORTED: dict[str, tuple[tuple[str, str], ...]] = {
    "unet": (("diffusers", "UNet2DConditionModel"),),
    "vae": (("diffusers", "AutoencoderKL"), ("latentdiff", "IdentityVAE")),
    **dict.fromkeys(ENCODERS, (("transformers", "CLIPTextModel"), ("transformers", "CLIPTextModelWithProjection"))),
    **dict.fromkeys(TOKENIZERS, (("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast"))),
}
# Components of diffusers' content checker and of IP-Adapters, which are not read.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
KNOWN = {*SUPPORTED, *UNUSED, "scheduler"}
# Settings that are read, implied by the U-Net's shape, or irrelevant to images.
SETTINGS = ("force_zeros_for_empty_prompt", "requires_aesthetics_score", "requires_safety_checker", "add_watermarker")
NEXT = "use a model of Stable Diffusion 1, 2 or XL"


@dataclass(frozen=True)
class PipelineIndex:
    """The components of a pipeline folder.

    text_encoders: the class of each by its folder. scheduler: the class that the scheduler's config is read as.
    zero_empty_prompt: a missing negative prompt is replaced by zeros. unused: names of components that are not read.
    """

    text_encoders: dict[str, str]
    scheduler: str
    zero_empty_prompt: bool
    unused: tuple[str, ...]


def read_index(folder: Path) -> PipelineIndex:
    """Read `model_index.json`: every component and setting is used, listed as unused, or rejected by name.

    Raises CheckpointError naming the entry and its value.
    """
    where = str(folder / INDEX)
    raw = read_json(folder / INDEX, "give a folder that a pipeline was saved to")
    found = {key: pair for key, entry in raw.items() if (pair := _component(key, entry, where)) is not None}
    _check_components(found, where)
    for key in REQUIRED:
        if key not in found:
            raise CheckpointError(f"{where}: the pipeline has no {key}; use a complete text-to-image model")
    for encoder, tokenizer in zip(ENCODERS, TOKENIZERS, strict=True):
        if (encoder in found) != (tokenizer in found):
            has, lacks = (encoder, tokenizer) if encoder in found else (tokenizer, encoder)
            raise CheckpointError(f"{where}: the pipeline has a {has} but no {lacks}; download the model again")
    return PipelineIndex(
        text_encoders={key: found[key][1] for key in ENCODERS if key in found},
        scheduler=found["scheduler"][1],
        zero_empty_prompt=raw.get("force_zeros_for_empty_prompt") is not False,
        unused=tuple(key for key in UNUSED if key in found),
    )


def _component(key: str, entry: Any, where: str) -> tuple[str, str] | None:
    """The library and class of a component; None for settings and for components that the pipeline does not have."""
    if key.startswith("_") or entry is None or entry == [None, None]:
        return None
    if isinstance(entry, bool) and (key in SETTINGS or not entry):  # a setting that is off has no effect
        return None
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise CheckpointError(f"{where}: {key[:80]}={shorten(entry)} {_problem(key)}")
    library, class_name = entry
    return library, class_name


def _problem(key: str) -> str:
    if key in SETTINGS:
        return "must be true or false; correct the file"
    if key in KNOWN:
        return "is not a pair of library and class; download the model again"
    return f"is not supported; {NEXT}"


def _check_components(found: dict[str, tuple[str, str]], where: str) -> None:
    """Raise CheckpointError for components of unknown classes, and for unknown components."""
    for key, pair in found.items():
        foreign = pair not in SUPPORTED[key] if key in SUPPORTED else key == "scheduler" and pair[0] != "diffusers"
        if key not in KNOWN or foreign:
            raise CheckpointError(f"{where}: {key[:80]}={shorten(list(pair))} is not supported; {NEXT}")


def pipeline_index(
    unet: UNetConfig, encoders: list[str], scheduler: str, zero_empty_prompt: bool, identity: bool
) -> dict[str, Any]:
    """The content of `model_index.json` for the pipeline class of diffusers with these components."""
    xl = unet.addition_embed_type is not None
    absent = [None, None]
    out: dict[str, Any] = {"_class_name": pipeline_class(unet, len(encoders)), "_diffusers_version": "0.30.0"}
    out |= {"feature_extractor": absent, "image_encoder": absent}
    if xl:
        out |= {"force_zeros_for_empty_prompt": zero_empty_prompt}
        out |= {"requires_aesthetics_score": True} if len(encoders) == 1 else {}
    else:
        out |= {"safety_checker": absent, "requires_safety_checker": False}
    out["scheduler"] = ["diffusers", scheduler]
    for name in ("text_encoder", "text_encoder_2") if xl else ("text_encoder",):
        kind = "CLIPTextModelWithProjection" if name == "text_encoder_2" else "CLIPTextModel"
        out[name] = ["transformers", kind] if name in encoders else absent
        out[name.replace("text_encoder", "tokenizer")] = (
            ["transformers", "CLIPTokenizer"] if name in encoders else absent
        )
    out["unet"] = ["diffusers", "UNet2DConditionModel"]
    out["vae"] = ["latentdiff", "IdentityVAE"] if identity else ["diffusers", "AutoencoderKL"]
    return out


def pipeline_class(unet: UNetConfig, encoders: int) -> str:
    """The pipeline class of diffusers for a model with this U-Net."""
    family = "StableDiffusionXL" if unet.addition_embed_type is not None else "StableDiffusion"
    if family == "StableDiffusionXL" and encoders == 1:
        return "StableDiffusionXLImg2ImgPipeline"
    task = {9: "Inpaint", 8: "InstructPix2Pix"}.get(unet.in_channels if unet.out_channels == 4 else 4, "")
    return f"{family}{task}Pipeline"
