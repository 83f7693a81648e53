"""Convert models between diffusers' folders and single files, tensor by tensor."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.checkpoints.families import family_of_config
from latentdiff.checkpoints.folder import GENERATION, TEXT_WEIGHTS, WEIGHTS
from latentdiff.checkpoints.key_names import QKV, KeyTable, open_clip_table, unet_table_of, vae_table
from latentdiff.checkpoints.model_source import ModelSource, NetworkFiles, OpenOptions
from latentdiff.checkpoints.pipeline_index import INDEX, pipeline_index
from latentdiff.checkpoints.safetensors_writer import NAMES, PlannedTensor, write_tensors
from latentdiff.checkpoints.single_file import source_of
from latentdiff.checkpoints.tensor_files import TYPES, TensorFile, tensor_reader
from latentdiff.checkpoints.tensor_locations import Readers, TensorLocation, read_tensor
from latentdiff.config.generation import GenerationConfig
from latentdiff.config.model import IdentityVAEConfig
from latentdiff.errors import CheckpointError, InputError
from latentdiff.files import partial_path, write_json

Planned = dict[str, PlannedTensor]
FORMATS = ("diffusers", "single-file")
CLIP_WORDS = 49408
# Prefixes of a single file: U-Net, VAE, and by family the text encoders.
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {
    "Stable Diffusion 1": ("cond_stage_model.transformer.",),
    "Stable Diffusion 2": ("cond_stage_model.model.",),
    "Stable Diffusion XL": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "Stable Diffusion XL refiner": ("conditioner.embedders.0.model.",),
}
# Settings that a single file cannot express and that affect images; others are reported as notes.
HINTS = {"sample_size", "bos_token_id", "eos_token_id", "pad_token_id", "projection_dim", "architectures"}
GRID_HINTS = {"timestep_spacing", "steps_offset", "set_alpha_to_one"}


def convert(source: ModelSource, target: Path, form: str, dtype: torch.dtype | None = None) -> list[str]:
    """Write a model in another layout. dtype: of all weights; None keeps that of the file. Returns notes.

    Raises InputError if the target exists, and CheckpointError if the layout cannot express the model.
    """
    if target.exists():
        raise InputError(f"{target} exists; choose a new {'folder' if form == 'diffusers' else 'file'}")
    if form == "single-file":
        return write_single_file(source, target, dtype)
    partial = partial_path(target)
    try:
        _write_folder(source, partial, dtype)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return []


def _write_folder(source: ModelSource, folder: Path, dtype: torch.dtype | None) -> None:
    networks = source.networks()
    for name, files in networks.items():
        stem = TEXT_WEIGHTS if name.startswith("text_encoder") else WEIGHTS
        write_json(folder / name / "config.json", files.config.write())
        planned = {key: _planned(place, dtype) for key, place in files.find().items()}
        write_tensors(folder / name / f"{stem}.safetensors", planned, {"format": "pt"})
    encoders = [name for name in networks if name.startswith("text_encoder")]
    for name, tokenizer in zip(encoders, source.read_tokenizers(), strict=True):
        tokenizer.save(folder / name.replace("text_encoder", "tokenizer"))
    write_json(folder / "scheduler" / "scheduler_config.json", source.schedule.write())
    if source.generation != GenerationConfig():
        write_json(folder / GENERATION, source.generation.model_dump(mode="json"))
    identity = isinstance(source.vae.config, IdentityVAEConfig)
    scheduler = source.schedule.class_name
    index = pipeline_index(source.unet.config, encoders, scheduler, source.zero_empty_prompt, identity)
    write_json(folder / INDEX, index)


def write_single_file(source: ModelSource, target: Path, dtype: torch.dtype | None) -> list[str]:
    """Write a model in Stable Diffusion's original layout. Raises CheckpointError if the layout cannot express it."""
    if target.suffix != ".safetensors":
        raise InputError(f"{target} must end in .safetensors; try {target.with_suffix('.safetensors')}")
    planned, metadata = plan_single_file(source, dtype)
    notes = _check_expressible(source, planned, metadata)
    write_tensors(target, planned, metadata)
    return notes


def plan_single_file(source: ModelSource, dtype: torch.dtype | None) -> tuple[Planned, dict[str, str]]:
    """The tensors of a single file by their original names, and its metadata."""
    unet = source.unet.config
    family = family_of_config(unet).name
    levels = len(unet.block_out_channels)
    table = unet_table_of(unet)
    if table is None:
        raise CheckpointError(f"{source.path}: a U-Net of {levels} levels and {unet.layers_per_block} layers has no "
                              "single-file layout; use --format diffusers")  # fmt: skip
    planned = _renamed(source.unet, table, UNET, dtype) | _renamed(source.vae, vae_table(), VAE, dtype, _convolution)
    if len(TEXT[family]) != len(source.text_encoders):
        raise CheckpointError(f"{source.path}: {family} has {len(TEXT[family])} text encoders; use --format diffusers")
    for prefix, files in zip(TEXT[family], source.text_encoders, strict=True):
        if prefix.endswith("model."):
            planned |= _open_clip(files, prefix, dtype)
        else:
            planned |= {f"{prefix}{key}": _planned(place, dtype) for key, place in files.find().items()}
    v_prediction = source.schedule.prediction_type == "v_prediction"
    metadata = {"format": "pt", "modelspec.prediction_type": "v" if v_prediction else source.schedule.prediction_type}
    if v_prediction:
        planned["v_pred"] = PlannedTensor((0,), torch.float32, lambda _: torch.empty(0))
    if source.schedule.rescale_betas_zero_snr:
        planned["ztsnr"] = PlannedTensor((0,), torch.float32, lambda _: torch.empty(0))
    return planned, metadata


def _planned(place: TensorLocation, dtype: torch.dtype | None) -> PlannedTensor:
    stored = TYPES.get(place.type, torch.float16)  # quantised weights of GGUF files become float16
    chosen = dtype if dtype is not None and stored.is_floating_point else stored
    return PlannedTensor(place.shape, chosen, lambda readers: read_tensor(place, readers))


def _renamed(
    files: NetworkFiles, table: KeyTable, prefix: str, dtype: torch.dtype | None,
    change: Callable[[str, PlannedTensor], PlannedTensor] = lambda _, planned: planned,
) -> Planned:  # fmt: skip
    found: Planned = {}
    for key, place in files.find().items():
        name = table.to_original(key)
        if name is None:
            raise CheckpointError(f"{files.where}: {key} has no name in single files; use --format diffusers")
        found[prefix + name] = change(name, _planned(place, dtype))
    return found


def _convolution(name: str, planned: PlannedTensor) -> PlannedTensor:
    """Reshape the VAE's attention projections, which are 1x1 convolutions in single files."""
    if ".attn_1." in name and len(planned.shape) == 2:
        return replace(planned, shape=(*planned.shape, 1, 1))
    return planned


def _open_clip(files: NetworkFiles, prefix: str, dtype: torch.dtype | None) -> Planned:
    """Tensors with OpenCLIP's names: queries, keys and values joined, the projection transposed."""
    found: Planned = {}
    for key, place in files.find().items():
        planned = _planned(place, dtype)
        if f".{QKV[0]}." in key:
            name = open_clip_table().to_original(key.replace(QKV[0], "out_proj"))
            parts = [_planned(files.find()[key.replace(QKV[0], other)], dtype) for other in QKV]
            shape = (3 * planned.shape[0], *planned.shape[1:])
            joined = PlannedTensor(shape, planned.dtype, _join(parts))
            found[prefix + str(name).replace("out_proj.", "in_proj_")] = joined
        elif not any(f".{other}." in key for other in QKV[1:]):
            name = open_clip_table().to_original(key)
            if name == "text_projection":
                planned = PlannedTensor(planned.shape[::-1], planned.dtype, _transpose(planned))
            found[f"{prefix}{name}"] = planned
    return found


def _join(parts: list[PlannedTensor]) -> Callable[[Readers], Tensor]:
    return lambda readers: torch.cat([part.read(readers) for part in parts])


def _transpose(planned: PlannedTensor) -> Callable[[Readers], Tensor]:
    return lambda readers: planned.read(readers).t()


def _check_expressible(source: ModelSource, planned: Planned, metadata: dict[str, str]) -> list[str]:
    """Derive the configs from the planned file's shapes, as when opening it, and compare them with the model's.

    Raises CheckpointError naming the first setting that would be lost; returns notes on settings that affect only
    defaults.
    """
    for files, tokenizer in zip(source.text_encoders, source.read_tokenizers(), strict=True):
        if files.config.vocab_size != CLIP_WORDS or not tokenizer.knows("photograph"):
            raise CheckpointError(f"{files.where}: single files use CLIP's vocabulary and this model its own; "
                                  "use --format diffusers")  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in planned.items()}
    types = {name: NAMES[tensor.dtype] for name, tensor in planned.items()}
    opened = TensorFile(shapes, types, lambda name: planned[name].read(tensor_reader), metadata)
    again = source_of(source.path, opened, OpenOptions(prediction_type=source.schedule.prediction_type))
    notes = []
    pairs = [(files.config, other.config) for files, other in
             zip(source.networks().values(), again.networks().values(), strict=True)]  # fmt: skip
    for ours, theirs in [*pairs, (source.schedule, again.schedule)]:
        for key, value, other in _differences(ours, theirs):
            if key not in HINTS | GRID_HINTS:
                raise CheckpointError(f"{source.path}: {key}={value!r} cannot be expressed in a single file, which "
                                      f"means {other!r}; use --format diffusers")  # fmt: skip
            if key not in HINTS - {"sample_size"}:
                notes.append(f"{key}={value!r} is lost; single files of this family imply {other!r}")
    return notes


def _differences(ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    keys = type(ours).model_fields
    if type(ours) is not type(theirs):
        return [("class", type(ours).__name__, type(theirs).__name__)]
    values = [(key, getattr(ours, key), getattr(theirs, key)) for key in keys]
    return [(key, value, other) for key, value, other in values if value != other]
