"""Open single files: models in Stable Diffusion's original layout, and U-Nets or VAEs in any layout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentdiff.checkpoints.clip_vocabulary import clip_tokenizer
from latentdiff.checkpoints.families import (
    OPEN_CLIP_LAYERS,
    SD2,
    Family,
    clip_config,
    family_of,
    schedule_config,
    unet_config,
    vae_config,
)
from latentdiff.checkpoints.key_names import open_clip_table, split_in_proj, unet_table, vae_table
from latentdiff.checkpoints.model_source import ModelSource, NetworkFiles, OpenOptions
from latentdiff.checkpoints.tensor_files import TensorFile, open_tensor_file
from latentdiff.checkpoints.tensor_locations import TensorLocation
from latentdiff.errors import CheckpointError
from latentdiff.text.clip import current_key
from latentdiff.text.tokenizer import END

Tensors = dict[str, TensorLocation]
UNET = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
VAE = ("first_stage_model.", "vae.", "")
# Prefixes of text encoders, and whether they are OpenCLIP's; the first one in a file is its first encoder.
TEXT = (
    ("conditioner.embedders.0.transformer.", False),
    ("cond_stage_model.transformer.", False),
    ("conditioner.embedders.1.model.", True),
    ("conditioner.embedders.0.model.", True),
    ("cond_stage_model.model.", True),
)
EMA = "model_ema."
UNUSED_TEXT = ("logit_scale", "attn_mask", "position_ids")
# Other state of training programs, and the markers that `schedule_config` reads.
UNUSED = (
    EMA, "first_stage_model.loss.", "betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_",
    "logvar", "lvlb_weights", "scale_factor", "cond_stage_model.", "conditioner.", "v_pred", "ztsnr", "denoiser.",
    "embedding_manager.", "global_step", "optimizer", "state_dict", "callbacks", "loops", "edm_",
)  # fmt: skip
SD2_BASE_SIZE = 64
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Contents:
    """The networks in a file by diffusers' names of their weights; None for missing ones."""

    unet: Tensors | None
    vae: Tensors | None
    text: list[tuple[Tensors, bool]]

    @property
    def kind(self) -> str:
        """A short description of the content."""
        if self.unet and self.vae and self.text:
            return "a whole model"
        found = [name for name, part in (("U-Net", self.unet), ("VAE", self.vae), ("text encoder", self.text)) if part]
        return " and ".join(f"a {name}" for name in found) or "no model"


def read_contents(file: Path, opened: TensorFile) -> Contents:
    """Group a file's tensors by network. Only names and shapes are read."""
    stored = {
        name: TensorLocation(file, name, shape, opened.types.get(name, "F32")) for name, shape in opened.shapes.items()
    }
    text = [(tensors, open_clip) for prefix, open_clip in TEXT if (tensors := _text(_under(stored, prefix), open_clip))]
    if not text:  # only a text encoder, with transformers' or OpenCLIP's names
        text = [(tensors, open_clip) for open_clip in (False, True) if (tensors := _text(stored, open_clip))][:1]
    return Contents(_first_found(_unet, stored, UNET), _first_found(_vae, stored, VAE), text)


def _under(stored: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): place for name, place in stored.items() if name.startswith(prefix)}


def _first_found(read: Callable[[Tensors], Tensors | None], stored: Tensors, prefixes: tuple[str, ...]) -> Any:
    return next((tensors for prefix in prefixes if (tensors := read(_under(stored, prefix)))), None)


def _unet(stored: Tensors) -> Tensors | None:
    """The tensors of a U-Net by diffusers' names, from diffusers' or the original layout."""
    if "conv_in.weight" in stored and "down_blocks.0.resnets.0.conv1.weight" in stored:
        return stored
    if "input_blocks.0.0.weight" not in stored:
        return None
    halvings = sum(name.startswith("input_blocks.") and name.endswith(".0.op.weight") for name in stored)
    table = unet_table(halvings + 1)
    if table is None:
        place = next(iter(stored.values()))
        raise CheckpointError(f"{place.file} has a U-Net of {halvings + 1} levels; only SD 1, 2 and XL are supported")
    return {table.to_diffusers(name) or name: place for name, place in stored.items()}


def _vae(stored: Tensors) -> Tensors | None:
    """The tensors of a VAE by diffusers' names, from diffusers' or the original layout."""
    kept = {name: place for name, place in stored.items() if not name.startswith(("loss.", EMA))}
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in kept:
        return {current_vae_key(name): place for name, place in kept.items()}
    if "encoder.down.0.block.0.conv1.weight" not in kept:
        return None
    return {vae_table().to_diffusers(name) or name: _matrix(name, place) for name, place in kept.items()}


def _matrix(name: str, place: TensorLocation) -> TensorLocation:
    """The attention's projections are stored as 1x1 convolutions."""
    if ".attn_1." in name and place.shape[2:] == (1, 1):
        return replace(place, shape=place.shape[:2])
    return place


def _text(stored: Tensors, open_clip: bool) -> Tensors | None:
    """The tensors of a text encoder by transformers' names."""
    if not open_clip:
        named = {new: place for name, place in stored.items() if (new := current_key(name)) is not None}
        table = "text_model.embeddings.token_embedding.weight"
        return (
            {k: v for k, v in named.items() if k.removeprefix("text_model.") not in UNUSED_TEXT}
            if table in named
            else None
        )
    if "positional_embedding" not in stored:
        return None
    found: Tensors = {}
    for name, place in stored.items():
        if name in UNUSED_TEXT or name.startswith("visual."):
            continue
        if (parts := split_in_proj(name)) is not None:
            if place.shape[0] % 3:
                raise CheckpointError(f"{place.file}: {place.name} has {place.shape[0]} rows, which three weights "
                                      "share; download the file again")  # fmt: skip
            third = place.shape[0] // 3
            for k, key in enumerate(parts[1]):
                found[key] = replace(place, shape=(third, *place.shape[1:]), rows=(k * third, (k + 1) * third))
            continue
        turned = name == "text_projection"
        found[open_clip_table().to_diffusers(name) or name] = (
            replace(place, shape=place.shape[::-1], transposed=True) if turned else place
        )
    return found


def current_vae_key(key: str) -> str:
    """The current name of a weight: VAEs saved before 2023 have other names for the projections of attention."""
    head, _, last = key.rpartition(".")
    parent, _, name = head.rpartition(".")
    return f"{parent}.{OLD_ATTENTION[name]}.{last}" if name in OLD_ATTENTION else key


def single_file_source(file: Path, options: OpenOptions) -> ModelSource:
    """Open a model in one file. Raises CheckpointError, which names the content, for other files."""
    return source_of(file, open_tensor_file(file, options.allow_pickle), options)


def source_of(file: Path, opened: TensorFile, options: OpenOptions) -> ModelSource:
    """The model in an opened file."""
    contents = read_contents(file, opened)
    refuse_other_kinds(file, opened, contents)
    assert contents.unet is not None and contents.vae is not None
    family = family_of(_shapes(contents.unet))
    text = [_text_network(file, tensors, open_clip, family, k) for k, (tensors, open_clip) in enumerate(contents.text)]
    if len(text) != len(family.text):
        raise CheckpointError(
            f"{file} has {len(text)} text encoders, {family.name} has {len(family.text)}; use another"
        )
    schedule, reason = schedule_config(family, opened.shapes, opened.metadata, options.prediction_type, str(file))
    if family is SD2 and schedule.prediction_type == "epsilon":
        family = replace(family, sample_size=SD2_BASE_SIZE)
    unet, vae = unet_network(file, contents.unet, family), vae_network(file, contents.vae, family)
    return ModelSource(
        path=file,
        unet=unet,
        vae=vae,
        text_encoders=tuple(text),
        read_tokenizers=lambda: [_tokenizer(network, contents.text[k][1]) for k, network in enumerate(text)],
        schedule=schedule,
        zero_empty_prompt=len(text) == 2,
        notes=(
            f"family {family.name}: by the weights",
            f"prediction type {schedule.prediction_type}: {reason}",
            *_ema(opened),
            *_left_out(opened),
        ),
    )


def unet_network(file: Path, tensors: Tensors, family: Family) -> NetworkFiles:
    """The U-Net in a file."""
    where = f"{file} (U-Net)"
    return NetworkFiles(unet_config(_shapes(tensors), family, where), where, lambda: tensors)


def vae_network(file: Path, tensors: Tensors, family: Family) -> NetworkFiles:
    """The VAE in a file."""
    where = f"{file} (VAE)"
    return NetworkFiles(vae_config(_shapes(tensors), family, where), where, lambda: tensors)


def _text_network(file: Path, tensors: Tensors, open_clip: bool, family: Family, k: int) -> NetworkFiles:
    if family is SD2:
        last = f"text_model.encoder.layers.{OPEN_CLIP_LAYERS - 1}."
        tensors = {n: place for n, place in tensors.items() if not n.startswith(last) and n != "text_projection.weight"}
    where = f"{file} (text encoder {k + 1})"
    return NetworkFiles(clip_config(_shapes(tensors), open_clip, where), where, lambda: tensors)


def _tokenizer(network: NetworkFiles, open_clip: bool) -> Any:
    return clip_tokenizer(network.config.max_position_embeddings, "!" if open_clip else END)


def _shapes(tensors: Tensors) -> Mapping[str, tuple[int, ...]]:
    return {name: place.shape for name, place in tensors.items()}


def _ema(opened: TensorFile) -> tuple[str, ...]:
    """A note on which of two sets of weights is read, if a file has both."""
    count = sum(name.startswith(EMA) for name in opened.shapes)
    return (f"EMA weights: {count} tensors of {EMA[:-1]} are not used; the other weights are",) if count else ()


def _left_out(opened: TensorFile) -> tuple[str, ...]:
    """Tensors that are not used and do not belong to a known training program."""
    known = (*UNUSED, *(prefix for prefix in (*UNET, *VAE) if prefix))
    unknown = sorted(name for name in opened.shapes if not name.startswith(known))
    return (f"{len(unknown)} unknown tensors are ignored, {unknown[0][:80]} first",) if unknown else ()


def refuse_other_kinds(file: Path, opened: TensorFile, contents: Contents) -> None:
    """Raise CheckpointError unless a file is a complete model; the message names the option for other files."""
    if contents.unet and contents.vae and contents.text:
        return
    names = opened.shapes
    if any(".lora_" in name or ".hada_" in name or ".lokr_" in name or name.endswith(".alpha") for name in names):
        raise CheckpointError(
            f"{file} is a LoRA, not a model; pass it by --lora (load_lora), with --model for the rest"
        )
    missing = [n for n, part in (("U-Net", contents.unet), ("text encoder", contents.text)) if not part]
    if contents.vae and len(missing) == 1:
        raise CheckpointError(f"{file} contains {contents.kind}, but no readable {missing[0]}; download it again")
    if contents.unet:
        lacks = "" if not (contents.vae or contents.text) else ", and not all of the rest"
        raise CheckpointError(f"{file} contains a U-Net{lacks}; pass it by --unet, and its model by --model")
    if contents.vae:
        raise CheckpointError(f"{file} is a VAE, not a model; pass it by --vae, with --model for the rest")
    if contents.text:
        raise CheckpointError(f"{file} is a text encoder, not a model; give the whole model")
    if not names:
        raise CheckpointError(f"{file} contains no tensors; download it again")
    if set(names) <= {"clip_l", "clip_g", "emb_params"} or any("string_to_param" in name for name in names):
        raise CheckpointError(f"{file} is a textual inversion embedding, not a model; pass it by --embedding")
    architecture = opened.metadata.get("general.architecture")
    what = f"a GGUF model of architecture {architecture!r}" if architecture else "in an unknown layout"
    raise CheckpointError(f"{file} is {what}; only Stable Diffusion 1, 2 and XL models are read")
