"""Human-readable descriptions of model, LoRA and embedding files."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from latentdiff.checkpoints.components import open_model
from latentdiff.checkpoints.families import family_name, family_of
from latentdiff.checkpoints.folder import network_files, network_kind
from latentdiff.checkpoints.lora_reader import LoraFile, read_lora
from latentdiff.checkpoints.model_source import ModelSource, OpenOptions
from latentdiff.checkpoints.pipeline_index import pipeline_class
from latentdiff.checkpoints.single_file import read_contents, refuse_other_kinds
from latentdiff.checkpoints.tensor_files import GGUF, SUFFIXES, TensorFile, open_tensor_file
from latentdiff.checkpoints.tensor_locations import TensorLocation
from latentdiff.checkpoints.textual_inversion import words_in
from latentdiff.config.model import IdentityVAEConfig
from latentdiff.errors import CheckpointError, InputError

CONTEXT_FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
LORA_MARKS = (".lora", "_lora", ".hada_", ".lokr_", "lora_unet_", "lora_te", "lycoris_")
TAGS = 10


def describe(path: Path, options: OpenOptions) -> Iterator[str]:
    """Lines that describe the model file or folder at `path`. Raises CheckpointError for other files."""
    if path.is_dir() and (path / "model_index.json").is_file():
        yield from _model(open_model(path, options))
    elif path.is_dir() and (kind := network_kind(path)) is not None:
        refuse_options(path, kind, options, ("prediction_type",))
        yield f"{path}: {kind}"
        yield _network(path.name, network_files(path, kind, options).find())
    elif path.is_dir():
        refuse_options(path, "a LoRA", options)
        yield from _lora(read_lora(path, options.allow_pickle))
    elif path.suffix in SUFFIXES:
        yield from _file(path, options)
    else:
        raise CheckpointError(f"{path} is not a model, LoRA, embedding, image or run; see latentdiff info --help")


def refuse_options(
    path: Path, kind: str, options: OpenOptions, names: Sequence[str] = ("prediction_type", "variant")
) -> None:
    """Raise InputError if one of these options is given, which have no effect on this kind of file."""
    for name in names:
        if value := getattr(options, name):
            raise InputError(f"{name}={str(value)!r} has no effect: {path} is {kind}; omit it")


def _file(path: Path, options: OpenOptions) -> Iterator[str]:
    opened = open_tensor_file(path, options.allow_pickle)
    if any(mark in f".{name}" for name in opened.shapes for mark in LORA_MARKS):
        refuse_options(path, "a LoRA", options)
        yield from _lora(read_lora(path, options.allow_pickle))
        return
    contents = read_contents(path, opened)
    if contents.unet and contents.vae and contents.text:
        yield from _model(open_model(path, options))
        return
    parts = {"unet": contents.unet, "vae": contents.vae}
    found = {name: tensors for name, tensors in parts.items() if tensors}
    found |= {f"text encoder {k + 1}": tensors for k, (tensors, _) in enumerate(contents.text)}
    if not found:
        if path.suffix == GGUF or not opened.shapes:
            refuse_other_kinds(path, opened, contents)
        refuse_options(path, "an embedding", options)
        yield from _embedding(path, opened)
        return
    refuse_options(path, contents.kind, options)
    family = f" of {family_of({k: t.shape for k, t in contents.unet.items()}).name}" if contents.unet else ""
    yield f"{path}: {contents.kind}{family}"
    for name, tensors in found.items():
        yield _network(name, tensors)


def _model(source: ModelSource) -> Iterator[str]:
    unet, encoders = source.unet.config, len(source.text_encoders)
    pixels = isinstance(source.vae.config, IdentityVAEConfig)
    yield f"{source.path}: {'a model of pixels' if pixels else family_name(unet)}"
    if not pixels:
        yield f"diffusers: {pipeline_class(unet, encoders)}"
    for name, files in source.networks().items():
        yield _network(name, files.find())
    side = unet.sample_size * source.vae.config.downscale
    yield f"trained for: {side}x{side} pixels"
    schedule = source.schedule
    zero = ", zero terminal SNR" if schedule.rescale_betas_zero_snr else ""
    yield f"schedule: {schedule.beta_schedule}, {schedule.num_train_timesteps} timesteps{zero}"
    yield from source.notes


def _network(name: str, tensors: Mapping[str, TensorLocation]) -> str:
    count = sum(torch.Size(place.shape).numel() for place in tensors.values())
    types = Counter(place.type for place in tensors.values())
    return f"{name}: {count / 1e6:.1f} M parameters in {', '.join(name for name, _ in types.most_common())}"


def _lora(file: LoraFile) -> Iterator[str]:
    ranks = Counter(delta.rank for delta in file.deltas.values())
    scales = Counter(round(delta.scale * delta.rank, 4) for delta in file.deltas.values() if delta.rank)
    yield f"{file.path}: a LoRA of {len(file.deltas)} layers, {_kinds(file)}"
    yield f"rank: {_counted(ranks)}; alpha: {_counted(scales)}"
    yield f"base: {_base(file)}"
    if words := trigger_words(file.metadata):
        yield f"trigger words: {', '.join(words)}"


def _kinds(file: LoraFile) -> str:
    found = set()
    for delta in file.deltas.values():
        kinds = delta.tensors.keys()
        name = "LoHa" if "w1_a" in kinds else "LoKr" if kinds & {"k1", "k1_a"} else "LoRA" if "up" in kinds else "full"
        found.add("DoRA" if name == "LoRA" and delta.magnitude() is not None else name)
    return " and ".join(sorted(found))


def _counted(values: Counter[Any]) -> str:
    ordered = sorted(values.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{'full' if value is None else f'{value:g}'}" for value, _ in ordered) or "none"


def _base(file: LoraFile) -> str:
    """The base model according to the metadata, or else to the width of the text embeddings."""
    said = file.metadata.get("ss_base_model_version") or file.metadata.get("modelspec.architecture")
    if said:
        return said[:80]
    for name, delta in file.deltas.items():
        if "attn2" in name and name.endswith(("to_k", "to_v")):
            width = delta.shape()[1]
            return CONTEXT_FAMILIES.get(width, f"text of width {width}")
    return "unknown"


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """Trigger words in a LoRA's metadata: its phrase, or else the most frequent tags of its training captions."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        return [phrase[:200]]
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return []
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, number in tags.items() if isinstance(tags, dict) else ():
            if isinstance(number, int):
                counts[str(tag).strip()[:80]] += number
    return [tag for tag, _ in counts.most_common(TAGS)]


def _embedding(path: Path, opened: TensorFile) -> Iterator[str]:
    for word, vectors in words_in(path, opened).items():
        widths = " and ".join(str(rows.shape[1]) for rows in vectors)
        base = "Stable Diffusion XL" if len(vectors) == 2 else CONTEXT_FAMILIES.get(vectors[0].shape[1], "unknown")
        yield f"{path}: the learned word {word!r}, {len(vectors[0])} vectors of width {widths}; base: {base}"
